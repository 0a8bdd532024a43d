"""`hpo ensemble`: the best trials' models as one, chosen on validation, judged on test; and the models kept for that.

Loads no torch by itself: workers ask it where a trial's model is to be kept.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from hpo.base_models import absolute_model
from hpo.config import StudyFile, trial_config
from hpo.datasets import cache_folder, models_folder
from hpo.datasets import fetch as fetch_incidents
from hpo.errors import InputError, SetupError
from hpo.feasible import Floors, best_trials, floors_of
from hpo.files import make_folder
from hpo.model_folder import ModelFacts, write_facts
from hpo.study import ours, parameters_of, refuse_other_versions
from objectives.config import STATIC, Head, Memory, TrialConfig
from objectives.data import Data, load_data
from objectives.evaluation import (
    INTERVAL,
    METRICS,
    RESAMPLES,
    Ranking,
    bootstrap_intervals,
    rank_pairs,
    resampled,
    score,
)
from objectives.model_files import fetch
from objectives.pairs import GradedPairs, held_out_pairs
from objectives.reading import DataError

if TYPE_CHECKING:
    from objectives.progress import Progress, Verdict

KEPT = 8  # models of a study on one box: of its best trials
LOOKS = "hpo:ensembles"  # of the study: what was judged on test, and how often that was looked at
SINGLE, ENSEMBLE, DISTILLED = "best single", "ensemble", "distilled"
Models = dict[str, Any]
Judged = dict[str, dict[str, Any]]  # by model


def kept_model(study: str, number: int) -> Path:
    return models_folder() / study / str(number)


def least_to_keep(study: optuna.Study, file: StudyFile) -> float:
    """The Spearman above which a trial may come among the best few."""
    best = best_trials(study.get_trials(deepcopy=False), file, KEPT)
    return min((trial.value or 0.0 for trial in best), default=-1.0) if len(best) == KEPT else -1.0


def keep_best(study: optuna.Study, file: StudyFile) -> None:
    """Removes what this box has of trials that ended, but for the best few."""
    trials = study.get_trials(deepcopy=False)
    best = {str(trial.number) for trial in best_trials(trials, file, KEPT)}
    running = {str(trial.number) for trial in trials if not trial.state.is_finished()}
    for path in kept_model(file.name, 0).parent.glob("*"):
        if path.name not in best and path.name.removeprefix(".") not in running:
            shutil.rmtree(path, ignore_errors=True)


def make_ensemble(study: optuna.Study, file: StudyFile, top: int, out: Path, distil: str | None) -> None:
    """Raises InputError, DataError, ModelError, SetupError; `out` appears whole or not at all."""
    if out.exists():
        raise InputError(f"{out} exists; give another folder, or remove it")
    refuse_other_versions(study)
    trials = _candidates(study, file, top)
    configs = [trial_config(file, parameters_of(trial), trial.number) for trial in trials]
    fetch_incidents(ours(study), file.incidents)
    data = load_data(configs[0], cache_folder())
    test = test_pairs(data, file)
    student = _student(distil, configs, kept_model(file.name, trials[0].number))
    make_folder(out.parent)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    floors = floors_of(study.get_trials(deepcopy=False), file)
    folders = [_model_of(file.name, trial, config) for trial, config in zip(trials, configs, strict=True)]
    weights = _select(folders, data, floors)
    members = {str(trial.number): weight for trial, weight in zip(trials, weights, strict=True) if weight}
    print("chosen: " + ", ".join(f"trial {number} ({weight:.2f})" for number, weight in members.items()), flush=True)
    models = _build(folders, weights, student, data, floors, configs[0])
    keep_best(study, file)
    partial, exported = out.with_name(f".{out.name}.partial"), list(models)[-1]
    shutil.rmtree(partial, ignore_errors=True)
    models[exported].save(str(partial), create_model_card=False)
    validation = _judge(models, data, data.validation)
    tested = _judge(models, data, test, file.pairs.seed)  # all is chosen: from here on it may be looked at
    looks = remember(study, {"members": members, "distilled": distil, "validation": validation, "test": tested})
    write_facts(partial, ModelFacts(incidents=file.incidents, threshold=validation[exported]["threshold"]))
    partial.rename(out)
    _print(validation, tested, looks)
    print(f"model: {out} ({exported}, {sum(path.stat().st_size for path in out.rglob('*')) / 2**20:,.0f} MiB)")


def _candidates(study: optuna.Study, file: StudyFile, top: int) -> list[FrozenTrial]:
    trials = best_trials(study.get_trials(deepcopy=False), file, top)
    if not trials:
        raise InputError(f"study {file.name!r} has no completed trial within its constraints; nothing to combine")
    if len(trials) < top:
        print(f"study {file.name} has {len(trials)} such trials, not {top}; all of them are tried")
    return trials


def test_pairs(data: Data, file: StudyFile) -> GradedPairs:
    try:
        return held_out_pairs(data.table, data.ladder, data.splits["test"], file.pairs)
    except DataError as error:
        raise InputError(f"the test split cannot judge: {error}; a study with a larger splits.test can") from None


def _student(model: str | None, configs: Sequence[TrialConfig], best: Path) -> str | None:
    """What is distilled into, as load_encoder() takes it: the best trial's model if it has that base. ModelError."""
    if model is None:
        return None
    if not model.removeprefix(STATIC):
        raise InputError(f"--distill {model!r}: give a model's name, or a folder")
    model = absolute_model(model, Path())
    if model == configs[0].model:
        return str(best.absolute())
    revisions = {config.model: config.model_revision for config in configs}
    return f"{STATIC if model.startswith(STATIC) else ''}{fetch(model, revisions.get(model))}"


def _model_of(study: str, trial: FrozenTrial, config: TrialConfig) -> Path:
    """As this box has kept it, or trained again: the same bits on a CPU."""
    from objectives.ensemble import is_kept, keep_model
    from objectives.finetune import finetune

    folder, found = kept_model(study, trial.number), trial.user_attrs
    if is_kept(folder, config):
        return folder
    fetch(config.model, config.model_revision)
    began, memory = time.monotonic(), Memory(**{name: found[name] for name in Memory.model_fields if name in found})

    def report(progress: Progress) -> Verdict:
        return "go on" if progress.epoch < found["stop_epoch"] else "overtaken"  # as it may have been

    plain = config.model_copy(update={"head": Head()})  # heads are not combined
    trained = finetune(plain, report, memory=memory, cache=cache_folder())
    scored = f"spearman {trained.result.scores['spearman']:.4f}, recorded {trial.value:.4f}"
    print(f"trial {trial.number}: trained again, {time.monotonic() - began:.0f} s, {scored}", flush=True)
    keep_model(trained.save, folder, config)
    if not is_kept(folder, config):
        raise SetupError(f"{folder} cannot be written, or its disk is full; set HPO_HOME to another folder")
    return folder


def _select(folders: Sequence[Path], data: Data, floors: Floors) -> list[float]:
    from objectives.ensemble import load_model, select, similarities

    pairs = data.validation
    found = np.stack([similarities(load_model(folder), data.table.texts, pairs) for folder in folders])
    counts = select(found, pairs.grades, data.ladder.positive, floors)
    weights: list[float] = (counts / counts.sum()).tolist()
    return weights


def _build(
    folders: Sequence[Path],
    weights: Sequence[float],
    student: str | None,
    data: Data,
    floors: Floors,
    best: TrialConfig,
) -> Models:
    """The last one is what was asked for, or the best single one where no other gained."""
    from objectives.distillation import distil
    from objectives.ensemble import combine, load_model

    models = {SINGLE: load_model(folders[0])}
    if weights[0] < 1:
        chosen = [(load_model(folder), weight) for folder, weight in zip(folders, weights, strict=True) if weight]
        models[ENSEMBLE] = combine([model for model, _ in chosen], [weight for _, weight in chosen])
    if student is not None:
        models[DISTILLED] = distil(list(models.values())[-1], student, data, floors, best.max_seq_tokens, best.seed)
    return models


def _judge(models: Models, data: Data, pairs: GradedPairs, seed: int | None = None) -> Judged:
    """With a seed, of each score its interval and that of its difference to the best single model's."""
    from objectives.ensemble import similarities

    judged: Judged = {}
    rankings = {
        name: rank_pairs(similarities(model, data.table.texts, pairs), pairs.grades, data.ladder.positive)
        for name, model in models.items()
    }
    for name, ranking in rankings.items():
        judged[name] = dict(score(ranking))
        if seed is not None:
            judged[name]["intervals"] = bootstrap_intervals(ranking, pairs.anchors, pairs.others, seed)
            judged[name]["gain"] = _gain_interval(ranking, rankings[SINGLE], pairs, seed)
    return judged


def _gain_interval(ranking: Ranking, single: Ranking, pairs: GradedPairs, seed: int) -> list[float]:
    """95 % of the difference in Spearman, both scored on the same resampled incidents."""
    gains = []
    for weights in islice(resampled(pairs.anchors, pairs.others, seed), RESAMPLES):
        with np.errstate(invalid="ignore"):
            gains.append(score(ranking, weights)["spearman"] - score(single, weights)["spearman"])
    low, high = np.nanpercentile(gains, INTERVAL)  # NaN: a class went without weight
    return [float(low), float(high)]


def remember(study: optuna.Study, found: dict[str, Any]) -> int:
    """How often test was looked at before."""
    before: list[Any] = study._storage.get_study_system_attrs(study._study_id).get(LOOKS, [])
    now = datetime.now(UTC).isoformat(timespec="seconds")
    study._storage.set_study_system_attr(study._study_id, LOOKS, [*before, {"at": now, **found}])
    return len(before)


def _print(validation: Judged, test: Judged, looks: int) -> None:
    from hpo.display import make_console, plain_table

    console, table = make_console(), plain_table("", *METRICS)
    for split, judged in (("validation", validation), ("test", test)):
        table.add_row(split)
        for name, found in judged.items():
            table.add_row(f"  {name}", *(f"{found[metric]:.3f}" for metric in METRICS))
            for place, word in enumerate(("from", "to")) if "intervals" in found else ():
                ends = (f"{found['intervals'][metric][place]:.3f}" for metric in METRICS)
                table.add_row(f"    95 % {word}", *ends, style="dim")
    console.print(table)
    for name in list(test)[1:]:
        console.print(_verdict(name, test[name], test[SINGLE]["spearman"]), soft_wrap=True)
    console.print(
        f"test was looked at {looks} time{'s' * (looks > 1)} before" if looks else "test is looked at first now"
    )


def _verdict(name: str, found: Mapping[str, Any], single: float) -> str:
    low, high = found["gain"]
    better = "better" if low > 0 else "worse" if high < 0 else "neither better nor worse"
    gain = f"spearman {found['spearman'] - single:+.3f} (95 % {low:+.3f} to {high:+.3f})"
    return f"on test, the {name} model is {better} than the best single one: {gain}"
