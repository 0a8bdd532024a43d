"""`hpo report`: of a study, a plan, or scores by hand; for terminal, page, Markdown, JSON or dashboard."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import optuna

from hpo.config import StudyFile
from hpo.connect import LOOK_PATIENCE_S, storage_url
from hpo.display import PIPED_WIDTH, make_console
from hpo.errors import InputError
from hpo.files import write_text
from hpo.hand_scores import report_of_scores
from hpo.report import Report, report_of
from hpo.report_page import write_report_page
from hpo.report_sections import sections
from hpo.report_text import markdown, print_sections
from hpo.study import open_study
from hpo.yamlfile import has_key, read_yaml
from storage.native import PostgresStorage

SUFFIXES = (".html", ".md")


def print_report(name: str, out: Path | None, *, as_json: bool, to_dashboard: bool) -> None:
    """`name`: of a study or plan, or the path of its file or of scores. Raises InputError."""
    if out is not None and out.suffix not in SUFFIXES:
        raise InputError(f"{out}: give a file that ends with {' or '.join(SUFFIXES)}")
    report = _report(name, to_dashboard=to_dashboard)
    if out is not None:
        title = f"Report of {report.name}"
        found = sections(report)
        if out.suffix == ".html":
            write_report_page(out, title, found, report.plots)
        else:
            write_text(out, markdown(title, found))
    if as_json:
        print(json.dumps(asdict(replace(report, plots=())), allow_nan=False))
    elif out is not None:
        print(out)
    else:
        console = make_console()
        console.width = max(console.width, PIPED_WIDTH)  # a number that is cut reads as another
        print_sections(console, f"Report of {report.name}", sections(report))


def _report(name: str, *, to_dashboard: bool) -> Report:
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and has_key(path, "scores"):
        if to_dashboard:
            raise InputError(f"{path}: scores by hand are of no study; there is no dashboard to publish to")
        return report_of_scores(path)
    storage = PostgresStorage(storage_url(), patience_s=LOOK_PATIENCE_S)
    named = _name_in(path) if path.suffix in (".yaml", ".yml") else name
    if named in optuna.get_all_study_names(storage):
        study, file = open_study(storage, named)
        return publish_report(study, file) if to_dashboard else report_of(study, file)

    from hpo.plan import PlanFile  # loads what reads incidents
    from hpo.report_plan import phases_of, report_of_plan

    done = phases_of(storage, named)
    for _, study, file in done if to_dashboard else ():
        publish_report(study, file)
    written = read_yaml(path, PlanFile).phases if named != name else ()
    return report_of_plan(named, done, [(phase.name, phase.budget.trials) for phase in written[len(done) :]])


def _name_in(path: Path) -> str:
    from hpo.plan import PlanFile
    from hpo.study_file import is_plan

    return read_yaml(path, PlanFile).name if is_plan(path) else read_yaml(path, StudyFile).name


def publish_report(study: optuna.Study, file: StudyFile) -> Report:
    """To the study's pages in the dashboard: note, plots, trials' notes, best.yaml."""
    from hpo.export import best_yaml
    from hpo.publish import publish

    report = report_of(study, file)
    note = markdown(f"Report of {file.name}", sections(report))
    best = None
    with suppress(InputError):  # there is none yet
        best = best_yaml(study, file)
    publish(study, note, {plot.name: plot.figure for plot in report.plots}, best)
    return report
