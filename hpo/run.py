"""`hpo run` from study file to best.yaml, and the commands that look at a study by name."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from rich.console import Console
from rich.live import Live
from sqlalchemy import URL

from hpo.config import StudyFile, trial_config
from hpo.connect import LOOK_PATIENCE_S, storage_url
from hpo.datasets import cache_folder, to_store
from hpo.display import comparison_table, live_view, make_console, out_of_reach, running_lines, status_line, verdicts
from hpo.errors import HpoError
from hpo.export import export
from hpo.files import make_folder
from hpo.launcher import default_workers, run_workers
from hpo.report_command import publish_report
from hpo.status import Snapshot, compare, take_snapshot
from hpo.study import DATA, create_study, open_study
from hpo.study_file import read_study_file
from objectives.config import TrialConfig
from objectives.data import Data, load_data, needs_model, train_pairs
from objectives.evaluation import ceilings
from objectives.statistics import statistics
from storage.connection import Unavailable
from storage.native import PostgresStorage

logger = logging.getLogger(__name__)

WATCH_S = 2.0
PUBLISH_S = 60.0  # between two reports in the dashboard while a study runs


def run_study(path: Path, workers: int | None, out: Path | None) -> None:
    """Creates or resumes, works, and writes best.yaml and logs under `out`. Raises HpoError and its kin."""
    url, file, study = create_from_file(path)
    folder = out or Path("runs") / file.name
    make_folder(folder / "logs")
    console = make_console()
    snapshot = take_snapshot(study, file)
    if not snapshot.is_over:
        work_in_view(console, url, file, study, workers or default_workers(), folder)
    else:
        console.print(f"study {file.name} is complete: {snapshot.finished} trials recorded")
    _print_end(console, study, file, folder)


def create_from_file(path: Path) -> tuple[URL, StudyFile, optuna.Study]:
    return create(read_study_file(path))


def create(file: StudyFile) -> tuple[URL, StudyFile, optuna.Study]:
    """The data are read before the database is touched: bad input leaves an earlier study as it was."""
    config = trial_config(file)
    data = load_data(config, cache_folder())
    if not needs_model(config.mining):
        train_pairs(data, config, cache_folder())
    url = storage_url()
    storage = PostgresStorage(url, patience_s=LOOK_PATIENCE_S)
    create_study(url, storage, file, to_store(file.incidents))
    study, stored = open_study(storage, file.name)
    storage.set_study_system_attr(study._study_id, DATA, _in_numbers(config))
    if all(trial.state == TrialState.WAITING for trial in study.get_trials(deepcopy=False)):
        _warn_of_targets(stored, data)
    return url, stored, study


def _in_numbers(config: TrialConfig) -> dict[str, Any]:
    """What a report says of the data where they are not at hand: no names, no texts."""
    found = statistics(config, cache_folder())
    pairs = sum(found.held_out_grades.values())
    return {
        "incidents": found.incidents,
        "splits": found.splits,
        "train_pairs": found.train_pairs,
        "positive_grade": load_data(config, cache_folder()).ladder.positive,
        "grade_shares": {str(grade): count / pairs for grade, count in found.held_out_grades.items()},
        "agreement": found.agreement,
        "noise_ceilings": found.noise_ceilings,
    }


def _warn_of_targets(file: StudyFile, data: Data) -> None:
    for metric, ceiling in ceilings(data.validation.grades, data.ladder.positive).items():
        if (target := file.targets.get(metric, 0.0)) > ceiling:
            print(f"hpo: {metric}: {out_of_reach(target, ceiling)}", file=sys.stderr)


def open_by_name(name: str) -> tuple[optuna.Study, StudyFile]:
    return open_study(PostgresStorage(storage_url(), patience_s=LOOK_PATIENCE_S), name)


def print_status(name: str, *, watch: bool, as_json: bool) -> None:
    study, file = open_by_name(name)
    console = make_console()
    snapshot = take_snapshot(study, file)
    if as_json:
        print(json.dumps(_as_json(snapshot), allow_nan=False))
        return
    if watch and console.is_terminal:
        with suppress(KeyboardInterrupt):
            _watch(console, study, file)
        snapshot = take_snapshot(study, file)
    why = [text for text in (snapshot.paused, snapshot.ended and f"ended: {snapshot.ended}") if text]
    console.print(status_line(snapshot), *running_lines(snapshot), *why, sep="\n", soft_wrap=True)
    if rows := compare(snapshot, file):
        console.print(comparison_table(rows))


def _watch(console: Console, study: optuna.Study, file: StudyFile) -> None:
    """Returns when the study is finished."""
    with Live(console=console, transient=True) as live:
        while not (snapshot := take_snapshot(study, file)).is_over:
            live.update(live_view(snapshot))
            time.sleep(WATCH_S)


def work_in_view(console: Console, url: URL, file: StudyFile, study: optuna.Study, workers: int, folder: Path) -> None:
    """A live view in a terminal; in a pipe a line whenever a trial has ended."""
    printed, published = -1, time.monotonic()
    live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def refresh() -> None:
        nonlocal printed, published
        snapshot = take_snapshot(study, file)
        if live is not None:
            live.update(live_view(snapshot))
        elif snapshot.finished > printed:
            printed = snapshot.finished
            console.print(status_line(snapshot), soft_wrap=True)
        if time.monotonic() - published > PUBLISH_S and snapshot.finished:
            published = time.monotonic()
            try:
                publish_report(study, file)
            except Exception as error:  # whatever it is, it must not end a search
                logger.warning("the dashboard's report was not renewed: %s", type(error).__name__)

    def look() -> None:
        with suppress(Unavailable):  # the workers wait for the database; so does the view
            refresh()

    with live or nullcontext():
        run_workers(file.name, url, workers, folder / "logs", look)


def _print_end(console: Console, study: optuna.Study, file: StudyFile, folder: Path) -> None:
    snapshot = take_snapshot(study, file)
    rows = compare(snapshot, file)
    if snapshot.ended:
        console.print(f"ended after {snapshot.finished} trials: {snapshot.ended}", soft_wrap=True)
    if not rows:
        raise HpoError(f"no trial of study {file.name!r} was completed; see {folder / 'logs'}")
    console.print(comparison_table(rows))
    best = export(study, file, folder / "best.yaml")[0]
    publish_report(study, file)
    written = ["", f"best configuration: {best}", f"worker logs:        {folder / 'logs'}"]
    command = "hpo" if shutil.which("hpo") else sys.argv[0]  # a virtual environment that is not activated
    next_step = f"train it:           {command} train {best} -o {folder / 'model'}"
    console.print(*verdicts(rows), *written, next_step, sep="\n", soft_wrap=True)


def _as_json(snapshot: Snapshot) -> dict[str, object]:
    return {
        "study": snapshot.study,
        "budget": snapshot.budget,
        **snapshot.counts,
        "best_trial": snapshot.best_trial,
        "best_spearman": snapshot.best_spearman,
        "time_left_s": snapshot.time_left_s,
        "paused": snapshot.paused,
        "ended": snapshot.ended,
    }
