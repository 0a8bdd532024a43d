"""`hpo run` from study file to best.yaml, and the commands that look at a study by name."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from rich.console import Console
from sqlalchemy import URL

from hpo import live
from hpo.config import StudyFile, trial_config
from hpo.connect import LOOK_PATIENCE_S, storage_url
from hpo.datasets import cache_folder, to_store
from hpo.display import comparison_table, make_console, out_of_reach, verdicts
from hpo.errors import HpoError
from hpo.export import export
from hpo.files import make_folder
from hpo.launcher import default_workers, run_workers
from hpo.report_command import publish_report
from hpo.status import Snapshot, compare, take_snapshot
from hpo.status_json import as_json as status_as_json
from hpo.study import DATA, create_study, open_study
from hpo.study_file import read_study_file
from objectives.config import TrialConfig
from objectives.data import Data, load_data, needs_model, train_pairs
from objectives.evaluation import ceilings
from objectives.statistics import statistics
from storage.native import PostgresStorage

logger = logging.getLogger(__name__)

PUBLISH_S = 60.0  # between two reports in the dashboard while a study runs


def run_study(path: Path, workers: int | None, out: Path | None) -> None:
    """Creates or resumes, works, and writes best.yaml and logs under `out`. Raises HpoError and its kin."""
    url, file, study = create(read_study_file(path))
    folder = out or Path("runs") / file.name
    make_folder(folder / "logs")
    console = make_console()
    snapshot = take_snapshot(study, file)
    if not snapshot.is_over:
        work_in_view(url, file, study, workers or default_workers(), folder)
    else:
        console.print(f"study {file.name} is complete: {snapshot.finished} trials recorded")
    _print_end(console, study, file, folder)


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
    if as_json:
        print(json.dumps(status_as_json(take_snapshot(study, file)), allow_nan=False))
        return
    console = make_console()
    snapshot = live.watch(console, study, file) if watch else take_snapshot(study, file)
    if snapshot is None:  # stopped before there was anything to see
        return
    live.print_once(console, snapshot)
    if rows := compare(snapshot, file):
        console.print(comparison_table(rows))


def work_in_view(url: URL, file: StudyFile, study: optuna.Study, workers: int, folder: Path) -> None:
    """A live view in a terminal; elsewhere a line for each trial that is recorded."""
    published = time.monotonic()

    def run(look: Callable[[], None]) -> None:
        run_workers(file.name, url, workers, folder / "logs", look)

    def publish(snapshot: Snapshot) -> None:
        nonlocal published
        if snapshot.finished and time.monotonic() - published > PUBLISH_S:
            published = time.monotonic()
            try:
                publish_report(study, file)
            except Exception as error:  # whatever it is, it must not end a search
                logger.warning("the dashboard's report was not renewed: %s", type(error).__name__)

    live.work_in_view(study, file, run, after=publish)


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
