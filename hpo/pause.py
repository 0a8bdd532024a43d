"""A study pauses when one bug has failed trials on several boxes: going on would only use up its budget.

Nobody writes that it is paused. It follows from the failed trials, so that no worker can miss it.
"""

from __future__ import annotations

from collections import defaultdict

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import InputError
from hpo.study import ours
from storage import studies

TRIALS, BOXES = 3, 2  # with the same bug
RESUMED = "hpo:resumed"  # a study's system attribute


def pause_reason(study: optuna.Study) -> str | None:
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    if _shared_bug(failed, 0) is None:
        return None
    if (found := _shared_bug(failed, resumed_from(study))) is None:
        return None
    name, (bug, trials, boxes) = study.study_name, found
    why = f"{trials} trials on {boxes} boxes failed of {bug}"
    return f"study {name} is paused: {why}. Mend it, then: hpo study resume {name}"


def resumed_from(study: optuna.Study) -> int:
    """The first trial that counts."""
    return studies.attribute(ours(study).ask, study._study_id, RESUMED) or 0


def resume(study: optuna.Study) -> None:
    """Raises InputError for a study that goes on anyway."""
    if pause_reason(study) is None:
        raise InputError(f"study {study.study_name} is not paused")
    study._storage.set_study_system_attr(study._study_id, RESUMED, len(study.get_trials(deepcopy=False)))


def _shared_bug(failed: list[FrozenTrial], first: int) -> tuple[str, int, int] | None:
    """A bug that has failed enough trials on enough boxes, and how many of either."""
    boxes_of = defaultdict[str, list[str]](list)
    for trial in failed:
        if trial.number >= first and {"trace", "worker"} <= trial.user_attrs.keys():
            boxes_of[_bug(trial.user_attrs["trace"])].append(trial.user_attrs["worker"].partition(":")[0])
    for bug, boxes in boxes_of.items():
        if len(boxes) >= TRIALS and len(set(boxes)) >= BOXES:
            return bug, len(boxes), len(set(boxes))
    return None


def _bug(trace: str) -> str:
    """The kind of error and where, as `KeyError in step (optimization.py:48)`: neither message nor folder."""
    *frames, error = trace.splitlines()
    place, _, function = frames[-1].rpartition(" ") if frames else ("", "", "?")
    return f"{error.partition(':')[0]} in {function} ({place.rpartition('/')[2]})"
