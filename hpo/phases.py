"""`hpo run` of a plan: its phases one after another, and a table of what each gained."""

from __future__ import annotations

from pathlib import Path

import optuna
from rich.console import Console
from rich.table import Table

from hpo.config import StudyFile
from hpo.connect import LOOK_PATIENCE_S, storage_url
from hpo.display import behind, make_console, plain_table, verdicts
from hpo.errors import HpoError
from hpo.export import export
from hpo.files import make_folder
from hpo.launcher import default_workers
from hpo.plan import Plan, mark, phase_file, read_plan
from hpo.run import create, work_in_view
from hpo.status import Comparison, compare, take_snapshot
from objectives.evaluation import METRICS
from storage.native import PostgresStorage

Done = list[tuple[str, optuna.Study, StudyFile]]  # phases and their studies


def run_plan(path: Path, workers: int | None, out: Path | None) -> None:
    """Goes on where it was left. Raises HpoError and its kin."""
    plan, console, done = read_plan(path), make_console(), Done()
    folder = out or Path("runs") / plan.name
    for number, phase in enumerate(plan.phases):
        file = phase_file(plan, number, PostgresStorage(storage_url(), patience_s=LOOK_PATIENCE_S))
        url, file, study = create(file)
        mark(plan, number, study)
        make_folder(folder / phase.name / "logs")
        console.print(f"phase {number + 1} of {len(plan.phases)}: {phase.name} (study {file.name})", soft_wrap=True)
        if not take_snapshot(study, file).is_over:
            work_in_view(url, file, study, workers or default_workers(), folder / phase.name)
        if (snapshot := take_snapshot(study, file)).ended:
            console.print(f"ended after {snapshot.finished} trials: {snapshot.ended}", soft_wrap=True)
        done.append((phase.name, study, file))
    _print_end(console, plan, done, folder)


def _print_end(console: Console, plan: Plan, done: Done, folder: Path) -> None:
    rows = {name: compare(take_snapshot(study, file), file) for name, study, file in done}
    if not any(rows.values()):
        raise HpoError(f"no trial of plan {plan.name!r} was completed; see the logs under {folder}")
    console.print(gain_table(rows))
    found = best_phase(done)
    assert found is not None
    name, study, file = found
    best = export(study, file, folder / "best.yaml")[0]
    written = f"best configuration: {best} (study {file.name})"
    first = next(found for found in rows.values() if found)
    console.print(*verdicts(rows[name], first), "", written, sep="\n", soft_wrap=True)


def best_phase(done: Done) -> tuple[str, optuna.Study, StudyFile] | None:
    """The phase with the best trial of all; None: no trial was completed."""
    rows = {name: compare(take_snapshot(study, file), file) for name, study, file in done}
    return max((one for one in done if rows[one[0]]), key=lambda one: _standing(rows[one[0]], rows), default=None)


def _standing(rows: list[Comparison], phases: dict[str, list[Comparison]]) -> tuple[bool, float]:
    """Whether nothing falls behind the baselines of the first phase; Spearman."""
    first = next(rows for rows in phases.values() if rows)
    return not behind(rows, first), rows[0].best


def gain_table(phases: dict[str, list[Comparison]]) -> Table:
    """The untrained model and the baselines of the first phase, the best of each phase, and its gain in Spearman."""
    table = plain_table("", *METRICS, "gain")
    first = next(rows for rows in phases.values() if rows)
    table.add_row("untrained", *(f"{row.untrained:.3f}" for row in first), "")
    for name in first[0].baselines:
        table.add_row(name, *(f"{row.baselines[name]:.3f}" for row in first), "")
    table.add_section()
    before = max([first[0].untrained, *first[0].baselines.values()])
    for name, rows in phases.items():
        if not rows:
            table.add_row(name, *("" for _ in METRICS), "none")
            continue
        table.add_row(name, *(f"{row.best:.3f}" for row in rows), f"{rows[0].best - before:+.3f}")
        before = max(before, rows[0].best)
    return table
