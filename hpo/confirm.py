"""`hpo confirm`: the best trials and the baselines of a study on several seeds, and one judgement of the best on test.

The runs are trials of a study of their own, NAME/confirm, which any worker may work on. All of them wait from the
beginning; which of them are needed follows from those that have ended (hpo/standing.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL

from hpo.config import CONFIRM, SEED, Budget, Pruner, StudyFile, settings, trial_config
from hpo.confirmed import CONFIRMED, Confirmation, Runs, Scores, confirmation_of, in_words
from hpo.connect import LOOK_PATIENCE_S, storage_url
from hpo.datasets import cache_folder, to_store
from hpo.datasets import fetch as fetch_incidents
from hpo.display import make_console
from hpo.ensemble import LOOKS, remember, test_pairs
from hpo.errors import HpoError, InputError
from hpo.feasible import best_trials, complete, floors_of, reaches
from hpo.files import make_folder
from hpo.launcher import default_workers
from hpo.race import LEAST, Duel, gain, gain_on_test, verdict_of
from hpo.report_command import publish_report
from hpo.run import work_in_view
from hpo.standing import CONFIRMS, JUDGES, Standing, key_of, seed_of, standing_of
from hpo.status import take_snapshot
from hpo.study import (
    BASELINE,
    OVERRIDES,
    PROPOSED_BY,
    create_study,
    is_baseline,
    open_study,
    ours,
    parameters_of,
    refuse_other_versions,
)
from objectives.data import load_data
from objectives.evaluation import METRICS, FloatArray
from search_spaces.space import SpaceWithBaselines, label
from storage.native import PostgresStorage
from storage.schema import creation_lock

if TYPE_CHECKING:
    from rich.table import Table

PLAN = "hpo:confirming"  # a study's system attribute: which of its trials, on how many seeds
FIRST_SEED = 1_000_000  # beyond those of the search: where a trial was lucky, it must not be so again
TO_JUDGE = 2  # pairs of runs at least


def confirm(name: str, top: int, seeds: int, workers: int | None) -> None:
    """Goes on where it was left; once it is judged, only says what was found. Raises InputError, HpoError and kin."""
    url, console = storage_url(), make_console()
    study, file = open_study(PostgresStorage(url, patience_s=LOOK_PATIENCE_S), name)
    if (found := confirmation_of(study)) is None:
        runs, its_file = _create(url, study, file, top, seeds)
        folder = Path("runs") / its_file.name
        make_folder(folder / "logs")
        if not take_snapshot(runs, its_file).is_over:
            work_in_view(url, its_file, runs, workers or default_workers(), folder)
        found = _judge(url, study, runs)
        publish_report(study, file)
    console.print(_table(found))
    console.print(found.why_stopped, in_words(found), _looked(study, found), sep="\n", soft_wrap=True)


def _create(url: URL, study: optuna.Study, file: StudyFile, top: int, seeds: int) -> tuple[optuna.Study, StudyFile]:
    """The study of the runs. Raises InputError before anything is made where they could not be judged."""
    if file.name.endswith(CONFIRM):
        raise InputError(f"{file.name} confirms another study already; give a study that searches")
    if seeds < LEAST:
        raise InputError(f"--seeds {seeds}: at least {LEAST} are needed to tell a gain from chance")
    refuse_other_versions(study)
    fetch_incidents(ours(study), file.incidents)
    test_pairs(load_data(trial_config(file), cache_folder()), file)
    trials, seeds = _planned(url, study, file, top, seeds)
    assert isinstance(file.space, SpaceWithBaselines)
    most = (len(trials) + 2) * seeds
    print(
        f"{len(trials)} configurations on {seeds} seeds, then the winner and its baseline on {seeds} others: "
        f"{most} runs at most",
        flush=True,
    )
    change = {
        "name": f"{file.name}{CONFIRM}",
        "budget": Budget(
            trials=2 * seeds * len(trials)
        ),  # of those that judge, all but two configurations' are skipped
        "pruner": Pruner(kind="off"),
        "sampler": "random",  # and never asked
        "warm_start": (),
        "space": file.space.model_copy(update={"baselines": {}, "first": {}}),
    }
    file = file.model_copy(update=change)
    create_study(
        url, ours(study), file, to_store(file.incidents), partial(_enqueue, trials=trials, file=file, seeds=seeds)
    )
    return open_study(ours(study), file.name)


def _planned(url: URL, study: optuna.Study, file: StudyFile, top: int, seeds: int) -> tuple[list[FrozenTrial], int]:
    """Trials and seeds as they were planned first, whatever is asked now or was found since."""
    with creation_lock(url):
        plan = study._storage.get_study_system_attrs(study._study_id).get(PLAN)
        if plan is None:
            if f"{file.name}{CONFIRM}" in optuna.get_all_study_names(study._storage):
                raise InputError(f"{file.name}{CONFIRM} confirms an earlier study of that name; delete it first")
            plan = {"trials": [trial.number for trial in _candidates(study, file, top)], "seeds": seeds}
            study._storage.set_study_system_attr(study._study_id, PLAN, plan)
    by_number = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    return [by_number[number] for number in plan["trials"]], plan["seeds"]


def _candidates(study: optuna.Study, file: StudyFile, top: int) -> list[FrozenTrial]:
    """The best of those searched, as far as they keep what baselines reach, and the baselines; none twice."""
    trials = study.get_trials(deepcopy=False)
    floors = floors_of(trials, file)
    baselines = [trial for trial in complete(trials) if is_baseline(trial)]
    searched = [trial for trial in best_trials(trials, file, len(trials)) if not is_baseline(trial)]
    distinct: dict[str, FrozenTrial] = {}
    for trial in [*baselines, *searched]:
        distinct.setdefault(label(settings(trial_config(file, parameters_of(trial)))), trial)
    searched = [trial for trial in distinct.values() if not is_baseline(trial)]
    searched = [trial for trial in searched if reaches(trial, floors)] or searched
    if not baselines:
        raise InputError(f"study {file.name!r} has no completed baseline; nothing to compare its best with")
    if not searched:
        raise InputError(f"study {file.name!r} has no completed trial within its constraints but baselines")
    if len(searched) < top:
        print(f"study {file.name} has {len(searched)} such trials, not {top}; all of them are tried")
    return [*searched[:top], *(trial for trial in distinct.values() if is_baseline(trial))]


def _enqueue(study: optuna.Study, trials: Sequence[FrozenTrial], file: StudyFile, seeds: int) -> None:
    """What is not there yet, seed by seed, so that those in common come first."""
    there = {key_of(trial) for trial in study.get_trials(deepcopy=False) if CONFIRMS in trial.user_attrs}
    for place in range(2 * seeds):
        seed = file.seed + FIRST_SEED + place
        for trial in trials:
            if (trial.number, seed) in there:
                continue
            attributes: dict[str, Any] = {CONFIRMS: trial.number, JUDGES: place >= seeds}
            attributes |= {name: trial.user_attrs[name] for name in (BASELINE,) if name in trial.user_attrs}
            attributes[OVERRIDES] = {**trial.user_attrs.get(OVERRIDES, {}), SEED: seed}
            attributes[PROPOSED_BY] = f"{file.name.removesuffix(CONFIRM)}#{trial.number}, seed {place + 1}"
            study.enqueue_trial(trial.params, user_attrs=attributes)


def _judge(url: URL, study: optuna.Study, runs: optuna.Study) -> Confirmation:
    """Once, whoever asks and is killed meanwhile."""
    with creation_lock(url):
        if (found := confirmation_of(study)) is not None:
            return found
        found = _found(runs)
        if not any(look.get("confirmed") == runs.study_name for look in _looks(study)):
            judged = {run.baseline or f"trial {run.trial}": run.test for run in found.runs if run.test}
            remember(study, {"confirmed": runs.study_name, "test": judged, "gain": found.gain_on_test})
        study._storage.set_study_system_attr(study._study_id, CONFIRMED, found.model_dump(mode="json"))
    return found


def _found(study: optuna.Study) -> Confirmation:
    """Raises HpoError where too few runs were completed."""
    trials = study.get_trials(deepcopy=False)
    standing, where = standing_of(trials), f"study {study.study_name}"
    if (why := standing.ended) is None or (duel := standing.duel) is None:
        raise HpoError(f"{where} has no winner: {why or 'it ended before all was decided'}")
    runs = {key_of(run): run for run in trials if CONFIRMS in run.user_attrs and run.state == TrialState.COMPLETE}
    pair = duel.challenger, duel.baseline
    seeds = sorted({seed_of(run) for run in standing.judging if all((one, seed_of(run)) in runs for one in pair)})
    if len(seeds) < TO_JUDGE:
        raise HpoError(f"{where} cannot judge: of those runs, only {len(seeds)} pairs were completed")
    tests = {one: [runs[one, seed].user_attrs["test"] for seed in seeds] for one in pair}
    on_test = gain_on_test(_difference(tests, duel, "spearman"), _difference(tests, duel, "replicates").mean(axis=0))
    named = {run.user_attrs[CONFIRMS]: run.user_attrs[BASELINE] for run in runs.values() if is_baseline(run)}
    found = [_runs(standing, duel, one, runs, named.get(one), tests.get(one)) for one in standing.ranking]
    return Confirmation(
        study=study.study_name,
        runs=tuple(found),
        winner=duel.winner,
        against=named[duel.baseline],
        gain=gain(standing.race.differences(*pair)),
        gain_on_test=on_test,
        verdict=verdict_of(on_test),
        why_stopped=why,
        challenger=None if duel.challenger == duel.winner else duel.challenger,
        judged_seeds=len(seeds),
    )


def _difference(tests: Mapping[int, Sequence[Mapping[str, Any]]], duel: Duel, key: str) -> FloatArray:
    """Challenger less baseline, (seeds, ...); NaN for a replicate that could not be scored."""
    challenger, baseline = (
        np.array([test[key] for test in tests[one]], dtype=np.float64) for one in (duel.challenger, duel.baseline)
    )
    return challenger - baseline


def _runs(
    standing: Standing,
    duel: Duel,
    one: int,
    runs: Mapping[tuple[int, int], FrozenTrial],
    name: str | None,
    tests: Sequence[Mapping[str, Any]] | None,
) -> Runs:
    """Of one configuration: `runs` by configuration and seed."""
    race = standing.race
    scores = [runs[one, seed].user_attrs for seed in race.scores[one]]
    return Runs(
        trial=one,
        baseline=name,
        seeds=len(scores),
        mean=_by_metric(np.mean, scores),
        spread=_by_metric(_spread, scores),
        gain=None if one == duel.baseline else gain(race.differences(one, duel.baseline)),
        dropped=race.dropped.get(one),
        test=_by_metric(np.mean, tests) if tests else None,
    )


def _by_metric(summary: Callable[[list[float]], Any], scores: Sequence[Mapping[str, Any]]) -> Scores:
    return {metric: float(summary([found[metric] for found in scores])) for metric in METRICS}


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _looks(study: optuna.Study) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = study._storage.get_study_system_attrs(study._study_id).get(LOOKS, [])
    return found


def _looked(study: optuna.Study, found: Confirmation) -> str:
    looks = _looks(study)
    before = next((place for place, look in enumerate(looks) if look.get("confirmed") == found.study), len(looks))
    times = f"{before} time{'s' * (before > 1)} before" if before else "never before"
    when = f" on {looks[before]['at'][:10]}" if before < len(looks) else ""
    return f"test was looked at{when} for this, and {times}"


def _table(found: Confirmation) -> Table:
    """The best first; what was dropped is dim. Right at 80 columns."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("configuration", no_wrap=True, overflow="ellipsis", max_width=24)
    for heading in ("seeds", "spearman", "gain over baseline (95 %)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in found.runs:
        name = f"trial {run.trial}" if run.baseline is None else run.baseline
        spearman = f"{run.mean['spearman']:.3f} ± {run.spread['spearman']:.3f}"
        style = "dim" if run.dropped else "bold" if run.trial == found.winner else None
        table.add_row(name, str(run.seeds), spearman, _gain(run), style=style)
    return table


def _gain(run: Runs) -> str:
    if run.gain is None:
        return ""
    point, low, high = run.gain
    return f"{point:+.3f} ({low:+.3f} to {high:+.3f})"
