"""Trials between Optuna's objects and our statements: rows of contents_v1 in, JSON for fill_v1 out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from storage.connection import Row
from storage.engine import StorageError

UNLEASED = -1  # the version of a running trial that may change in any way
MAX_NAME = 512  # characters, of a parameter or an attribute
STATES = {state.name: state for state in TrialState}


@dataclass
class Contents:
    """What is still to be written of a trial, as incident_hpo.fill_v1 reads it."""

    params: dict[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    system_attrs: dict[str, str] = field(default_factory=dict)  # JSON already: what cannot be is refused when it is set
    user_attrs: dict[str, str] = field(default_factory=dict)
    reports: dict[int, float] = field(default_factory=dict)
    outcome: Sequence[float] | None = None
    params_hash: str | None = None

    def add(self, more: Contents) -> None:
        self.params |= more.params
        self.system_attrs |= more.system_attrs
        self.user_attrs |= more.user_attrs
        self.reports |= more.reports

    def as_json(self) -> str:
        found: dict[str, Any] = {}
        if self.params:
            found["params"] = [
                (name, repr(float(value)), distribution_to_json(kind)) for name, (value, kind) in self.params.items()
            ]
        if self.system_attrs:
            found["system_attrs"] = list(self.system_attrs.items())
        if self.user_attrs:
            found["user_attrs"] = list(self.user_attrs.items())
        if self.reports:
            found["reports"] = [(step, repr(float(value))) for step, value in self.reports.items()]
        if self.outcome is not None:
            found["outcome"] = [repr(float(value)) for value in self.outcome]
        if self.params_hash is not None:
            found["params_hash"] = self.params_hash
        return json.dumps(found)


def checked_name(name: str) -> str:
    """Of a parameter or an attribute. Raises ValueError for what Optuna's tables cannot hold."""
    name.encode()  # raises for a lone surrogate, which is no text
    if "\0" in name or len(name) > MAX_NAME:
        raise ValueError(f"a name holds no NUL and at most {MAX_NAME} characters, not {name[:20]!r} ({len(name)})")
    return name


def checked_step(step: int) -> int:
    """Raises ValueError for what Optuna's tables cannot hold."""
    if step != int(step) or not -(2**31) <= step < 2**31:
        raise ValueError(f"a step is a whole number of 32 bits, not {step}")
    return int(step)


def beginning_of(template: FrozenTrial | None) -> tuple[str, bool, datetime | None, datetime | None, str]:
    """State, whether it starts now, else when, end and contents of a new trial, as create_v1 reads them."""
    if template is None:
        return TrialState.RUNNING.name, True, None, None, Contents().as_json()
    kinds = template.distributions
    contents = Contents(
        params={
            checked_name(name): (kind.to_internal_repr(template.params[name]), kind) for name, kind in kinds.items()
        },
        system_attrs={checked_name(key): json.dumps(value) for key, value in template.system_attrs.items()},
        user_attrs={checked_name(key): json.dumps(value) for key, value in template.user_attrs.items()},
        reports=template.intermediate_values,
        outcome=template.values,
    )
    start, end = _to_utc(template.datetime_start), _to_utc(template.datetime_complete)
    return template.state.name, False, start, end, contents.as_json()


def to_trial(row: Row) -> FrozenTrial:
    """Raises StorageError for what a program of another kind has left."""
    try:
        return _trial(row)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"trial {row[2]} of study {row[1]} holds what cannot be read ({type(error).__name__}); "
            f"the database's owner removes it: DELETE FROM public.trials WHERE trial_id = {row[0]}"
        ) from None


def _trial(row: Row) -> FrozenTrial:
    trial_id, _, number, state, start, complete, _, outcome, names, stored, internals, system, user, reports = row
    kinds = _distributions(names, stored) if names else {}
    words = iter(reports.split() if reports else ())
    return FrozenTrial(
        trial_id=trial_id,
        number=number,
        state=STATES[state],
        value=None,
        values=[float(value) for value in outcome.split()] if outcome else None,
        datetime_start=_to_local(start),
        datetime_complete=_to_local(complete),
        params={
            name: kind.to_external_repr(float(value))
            for (name, kind), value in zip(kinds.items(), (internals or "").split(), strict=True)
        },
        distributions=dict(kinds),
        system_attrs={key: json.loads(value) for key, value in system or ()},
        user_attrs={key: json.loads(value) for key, value in user or ()},
        intermediate_values={int(step): float(value) for step, value in zip(words, words, strict=True)},
    )


def version_of(row: Row) -> int | None:
    """How much of an unfinished trial the row holds; None for a finished one, which never changes."""
    state, version = row[3], row[6]
    return int(version) if state in ("WAITING", "RUNNING") else None


def _to_local(moment: datetime | None) -> datetime | None:
    """Optuna stores naive UTC and shows naive local time."""
    return moment and moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def _to_utc(moment: datetime | None) -> datetime | None:
    return moment and moment.astimezone(UTC).replace(tzinfo=None)


@lru_cache(1024)  # the same in trial after trial
def _distributions(names: str, stored: str) -> dict[str, BaseDistribution]:
    return {name: json_to_distribution(kind) for name, kind in zip(json.loads(names), stored.split("\n"), strict=True)}
