"""What each pruner would have saved and missed in a study: its curves played again, one trial after another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import compress
from typing import get_args

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.config import Pruner, PrunerKind, StudyFile
from hpo.display import make_console, plain_table
from hpo.errors import InputError
from hpo.feasible import Floors, floors_of, reaches
from hpo.pruning import Curve, curve_of, decide, is_peer, longest_plan, margin_of, untrained_of
from hpo.study import is_baseline


@dataclass(frozen=True)
class Replay:
    pruned: int
    saved: float  # share of the examples that were trained on
    missed: float  # Spearman of the best trial, less that of the best that is left


def replay(pruner: Pruner, trials: Sequence[FrozenTrial], longest: int, floors: Floors) -> Replay:
    """A trial is compared with those before it, as they ended in the replay; baselines are never pruned."""
    untrained, ended, peers, known = untrained_of(trials), list[Curve](), list[Curve](), list[FrozenTrial]()
    for trial in trials:
        curve = curve_of(trial, untrained)
        if not is_baseline(trial):
            curve = _played(pruner, curve, peers, margin_of(known, pruner), longest)
        ended.append(curve)
        peers += [curve] if is_peer(trial, floors) else []
        known += [trial] if curve.state == TrialState.COMPLETE else []
    seen, total = (sum(curve.steps[-1] for curve in some) for some in (ended, [curve_of(t, {}) for t in trials]))
    reaching = [reaches(trial, floors) and trial.state == TrialState.COMPLETE for trial in trials]
    if not any(reaching):
        reaching = [True] * len(trials)
    best, kept = (_best(compress(some, reaching)) for some in ([curve_of(t, {}) for t in trials], ended))
    pruned = sum(curve.state == TrialState.PRUNED for curve in ended)
    return Replay(pruned, 1 - seen / total, best - kept)


def _played(pruner: Pruner, curve: Curve, ended: Sequence[Curve], margin: float, longest: int) -> Curve:
    """As far as it came. Of its last report nobody asks: the trial is over."""
    for step in curve.steps[:-1]:
        if decision := decide(pruner, curve.until(step), ended, margin, longest):
            state = TrialState.PRUNED if decision.verdict == "prune" else TrialState.COMPLETE
            return replace(curve.until(step), state=state)
    return curve


def _best(curves: Iterable[Curve]) -> float:
    return max((curve.best for curve in curves if curve.state == TrialState.COMPLETE), default=0.0)


def print_audit(study: optuna.Study, file: StudyFile, *, as_json: bool) -> None:
    """Raises InputError for a study without enough curves."""
    trials = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and curve_of(t, {}).steps]
    if not any(trial.state == TrialState.COMPLETE for trial in trials):
        raise InputError(f"study {study.study_name!r} has no completed trial; there is nothing to compare")
    longest, floors = longest_plan(file), floors_of(trials, file)
    found = {name: replay(pruner, trials, longest, floors) for name, pruner in candidates(file).items()}
    if as_json:
        print(json.dumps({name: asdict(replayed) for name, replayed in found.items()}))
        return
    table = plain_table("pruner", "pruned", "examples saved", "Spearman missed")
    for name, replayed in found.items():
        table.add_row(name, f"{replayed.pruned} of {len(trials)}", f"{replayed.saved:.0%}", f"{replayed.missed:.4f}")
    make_console().print(table)
    if cut := sum(trial.state == TrialState.PRUNED for trial in trials):
        print(f"{cut} of the trials were pruned when they ran, so their curves are cut short: the figures are too low")


def candidates(file: StudyFile) -> dict[str, Pruner]:
    """Each kind with the study's own settings, its own first."""
    own = file.pruner
    return {f"{own.kind} (this study's)": own} | {
        kind: own.model_copy(update={"kind": kind}) for kind in get_args(PrunerKind) if kind not in ("off", own.kind)
    }
