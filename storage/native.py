"""PostgresStorage: Optuna's storage interface on Optuna's tables, with plain SQL, leases and few round trips.

Any process may use it through Optuna alone: writes go out at once, reads ask the database. A process that claims trials
also holds their leases: what it writes of them is fenced, gathered until flush(), report or tell, and replies bring the
other trials' changes, so that the reads of samplers and pruners that follow cost nothing.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import threading
import uuid
from collections.abc import Callable, Container, Sequence
from typing import Any

from optuna._typing import JSONSerializable
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL

from storage import statements, studies, terms
from storage.cache import FRESH_S, StudyCache
from storage.connection import Connection, Row, Unavailable
from storage.engine import parse_url, without_password
from storage.leases import Claim, Lease, LeaseLost, refuse
from storage.schema import ensure_schema
from storage.trials import Contents, beginning_of, checked_name, checked_step, to_trial

logger = logging.getLogger(__name__)

PATIENCE_S = 600.0
REPORT_PATIENCE_S = 3.0  # training waits for the answer; what could not be sent goes with the next write
CHANGES, BULK = 200, 5000  # trials in one reply: while locks are held, and in a plain read


class PostgresStorage(BaseStorage):
    """Raises Unavailable when the database stays away for `patience_s`, LeaseLost for a trial that another may run.

    A pickled storage leaves its password behind: what unpickles it needs a password file (PGPASSFILE).
    """

    def __init__(
        self, url: URL | str, *, patience_s: float = PATIENCE_S, interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        self._url = url = parse_url(url) if isinstance(url, str) else url
        self.patience_s = patience_s
        self._connection = Connection(url, interrupted)
        self.connections = [self._connection]  # of this process: a Keeper adds its own
        ensure_schema(url, self._connection)
        self._process, self._mutex = os.getpid(), threading.RLock()
        self._caches: dict[int, StudyCache] = {}
        self._leases: dict[int, Lease] = {}
        self._ended: set[int] = set()  # trials that this process held: never written again without a new claim

    def __getstate__(self) -> dict[str, Any]:
        return {"url": without_password(self._url), "patience_s": self.patience_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    # Studies that the service runs, and their leases

    def manage(self, study_id: int, budget: int, lease_s: float) -> None:
        """From now on trials of the study can be claimed, up to `budget` outcomes, and are swept."""
        terms.manage(self.ask, study_id, budget, lease_s, None, None, reopen=True)

    def claim(self, study_id: int, worker: str) -> Claim:
        """One round trip; `worker` is for people. Raises KeyError for a study that is not managed."""
        with self._turn():
            cache = self._cache(study_id)
            if not cache.trials:
                self._refresh(cache)
            request, known = f"{worker} {uuid.uuid4()}", cache.known(without=self._leases)
            # How long connected is asked anew at each attempt: one that had to reconnect must not sweep.
            rows = self.ask(
                statements.CLAIM, lambda: (study_id, request, worker, worker, self.connected_s(), *known, CHANGES)
            )
            verdict, trial_id, token, attempt = rows[0][:4]
            if verdict == "unknown":
                raise KeyError(f"study {study_id} is not managed")
            cache.take([row[4:] for row in rows], CHANGES)
            if verdict == "claimed":
                self._leases.pop(trial_id, None)  # of an earlier attempt, lost unnoticed
                if trial_id not in {row[4] for row in rows}:  # left out for that lease, or beyond the reply's limit
                    self._refresh(cache)
                self._ended.discard(trial_id)
                trial = cache.get(trial_id)  # which Optuna writes into
                connects = self._connection.connects
                self._leases[trial_id] = Lease(study_id, token, trial, copy.deepcopy(trial), connects=connects)
            return Claim(verdict, trial_id, token, attempt)

    def flush(self, trial_id: int, *, params_hash: str | None = None) -> bool:
        """Writes what was gathered of a claimed trial. False, and nothing written: a running trial has that hash."""
        with self._turn():
            if (lease := self._held(trial_id)) is None:
                raise KeyError(f"trial {trial_id} was not claimed here")
            lease.pending.params_hash = params_hash
            return self._flush(trial_id, lease, None, self.patience_s) != "equal"

    def forget(self, trial_id: int) -> None:
        """Of a claimed trial of which nothing was sent yet: it is as it was claimed."""
        with self._turn():
            if lease := self._held(trial_id):
                lease.pending, lease.trial = Contents(), copy.deepcopy(lease.claimed)
                self._caches[lease.study_id].put(lease.trial)

    def resumed(self, trial_id: int, examples: int) -> None:
        """The run goes on from so many examples; if no run had come that far, attempts are counted anew."""
        with self._turn():
            if lease := self._held(trial_id):
                self.ask(statements.RESUMED, (trial_id, lease.token, examples))

    def release(self, trial_id: int, *, reason: str | None, patience_s: float | None = None) -> bool:
        """Gives a claimed trial back, to wait; with a reason, the third time to fail. Whether it was held here."""
        with self._turn():
            if (lease := self._leases.pop(trial_id, None)) is None:
                return False
            self._ended.add(trial_id)
            patience_s = self.patience_s if patience_s is None else patience_s
            rows = self._connection.persist(statements.RELEASE, (trial_id, lease.token, reason), patience_s=patience_s)
            return bool(rows[0][0])

    def connected_s(self) -> float:
        """Since the last reconnect of this process: until then others may just not have come back yet."""
        return min(connection.connected_s() for connection in self.connections)

    # Optuna's interface: studies

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return studies.create(self._connection, directions, study_name)

    def delete_study(self, study_id: int) -> None:
        studies.delete(self.ask, study_id)
        self._caches.pop(study_id, None)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        studies.set_attribute(self.ask, "user", study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: JSONSerializable) -> None:
        studies.set_attribute(self.ask, "system", study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        study_id = studies.id_of(self.ask, study_name)
        self._cache(study_id).name = study_name
        return study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        cache = self._cache(study_id)
        cache.name = studies.name_of(self.ask, study_id) if cache.name is None else cache.name
        return cache.name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        cache = self._cache(study_id)
        cache.directions = cache.directions or studies.directions_of(self.ask, study_id)
        return cache.directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return studies.attributes(self.ask, "user", study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return studies.attributes(self.ask, "system", study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        return studies.all_studies(self.ask)

    # Optuna's interface: trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = self.ask(statements.CREATE, (study_id, str(uuid.uuid4()), *beginning_of(template_trial)))[0][0]
        if trial_id is None:
            raise KeyError(f"no study {study_id}")
        return int(trial_id)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        with self._turn():
            lease = self._held(trial_id)
            cache = self._caches[lease.study_id] if lease else self._updatable(trial_id)
            if param_name in cache.distributions:
                check_distribution_compatibility(cache.distributions[param_name], distribution)
            self._put(
                trial_id,
                Contents(params={checked_name(param_name): (param_value_internal, distribution)}),
                _params={param_name: distribution.to_external_repr(param_value_internal)},
                _distributions={param_name: distribution},
            )

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        with self._turn():
            if (lease := self._held(trial_id)) is None:
                return self._write(trial_id, Contents(outcome=values), state) != "kept"
            lease.pending.outcome = values
            self._caches[lease.study_id].expect(trial_id)
            return self._flush(trial_id, lease, state, self.patience_s) != "kept"

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        with self._turn():
            report = {checked_step(step): intermediate_value}
            if (lease := self._put(trial_id, Contents(reports=report), intermediate_values=report)) is None:
                return
            try:
                self._flush(trial_id, lease, None, min(REPORT_PATIENCE_S, self.patience_s))
            except Unavailable:
                self._caches[lease.study_id].make_do()
                logger.warning("the database is away: a report of trial %d waits for the next", lease.trial.number)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        stored = json.dumps(value)
        self._put(trial_id, Contents(user_attrs={checked_name(key): stored}), _user_attrs={key: json.loads(stored)})

    def set_trial_system_attr(self, trial_id: int, key: str, value: JSONSerializable) -> None:
        stored = json.dumps(value)
        self._put(trial_id, Contents(system_attrs={checked_name(key): stored}), _system_attrs={key: json.loads(stored)})

    def get_trial(self, trial_id: int) -> FrozenTrial:
        with self._turn():
            if trial_id in self._leases:
                return self._leases[trial_id].trial
            for cache in self._caches.values():
                if trial_id in cache.places and trial_id not in cache.versions:
                    return cache.get(trial_id)
            if not (rows := self.ask(statements.READ_TRIAL, (trial_id,))):
                raise KeyError(f"no trial {trial_id}")
            return to_trial(rows[0])

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        with self._turn():
            cache = self._cache(study_id)
            holds_one = any(lease.study_id == study_id for lease in self._leases.values())
            if not (holds_one and cache.is_fresh(FRESH_S)):
                self._refresh(cache)
            trials = [trial for trial in cache.trials if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return studies.trial_id(self.ask, study_id, trial_number)

    def remove_session(self) -> None:
        self._connection.close()

    def _turn(self) -> threading.RLock:
        if self._process != os.getpid():  # forked while another thread had its turn
            self._process, self._mutex = os.getpid(), threading.RLock()
        return self._mutex

    def ask(self, statement: str, values: Any = ()) -> list[Row]:
        return self._connection.persist(statement, values, patience_s=self.patience_s)

    def _cache(self, study_id: int) -> StudyCache:
        return self._caches.setdefault(study_id, StudyCache(study_id))

    def _refresh(self, cache: StudyCache) -> None:
        while True:
            study_id, *known = cache.known(without=self._leases)
            if not (rows := self.ask(statements.READ_CHANGES, (*known, BULK, study_id))):
                del self._caches[study_id]
                raise KeyError(f"no study {study_id}")
            if cache.take(rows, BULK):
                return

    def _held(self, trial_id: int) -> Lease | None:
        """The lease of a trial that this process runs; LeaseLost if it did once."""
        if trial_id in self._ended:
            raise LeaseLost(f"trial {trial_id} is no longer run here")
        return self._leases.get(trial_id)

    def _put(self, trial_id: int, contents: Contents, **entries: dict[Any, Any]) -> Lease | None:
        """At once without a lease; under one, gathered for the next flush and entered in the local copy."""
        with self._turn():
            if (lease := self._held(trial_id)) is None:
                self._write(trial_id, contents)
            else:
                lease.pending.add(contents)
                self._change(lease, **entries)
            return lease

    def _change(self, lease: Lease, **entries: dict[Any, Any]) -> None:
        """In a copy: whoever read the trial before keeps what was read. (copy.copy takes ten times as long.)"""
        trial = FrozenTrial.__new__(FrozenTrial)
        changed = {name: getattr(lease.trial, name) | new for name, new in entries.items()}
        trial.__dict__ = lease.trial.__dict__ | changed
        lease.trial = trial
        self._caches[lease.study_id].put(trial)

    def _updatable(self, trial_id: int) -> StudyCache:
        """Newest knowledge of the study of a trial that can be written. Raises KeyError, UpdateFinishedTrialError."""
        cache = self._cache(studies.of_trial(self.ask, trial_id))
        self._refresh(cache)
        self.check_trial_is_updatable(trial_id, cache.get(trial_id).state)
        return cache

    def _write(self, trial_id: int, contents: Contents, state: TrialState | None = None) -> str:
        rows = self.ask(statements.SAVE, (trial_id, contents.as_json(), None if state is None else state.name))
        return self._checked(rows[0][0], trial_id)

    def _flush(self, trial_id: int, lease: Lease, state: TrialState | None, patience_s: float) -> str:
        """Sends what is pending; on Unavailable it stays so. Changes come back unless there were some just now."""
        cache, next_state = self._caches[lease.study_id], None if state is None else state.name
        is_news_wanted = state is not None or not cache.is_fresh(FRESH_S / 2)
        without = self._leases if state is None else self._leases.keys() - {trial_id}
        known = cache.known(without=without) if is_news_wanted else (None, 0, [], [])
        rows = self._connection.persist(
            statements.SAVE_LEASED,
            lambda: (trial_id, lease.token, lease.unsent(self._connection.connects), next_state, *known, CHANGES),
            patience_s=patience_s,
        )
        verdict = self._checked(rows[0][0], trial_id)
        if verdict != "equal":
            lease.pending = Contents()
        lease.pending.params_hash = None
        if state is not None:
            del self._leases[trial_id]
            if not state.is_finished():
                self._ended.add(trial_id)
        if is_news_wanted:
            cache.take([row[1:] for row in rows], CHANGES)
        return verdict

    def _checked(self, verdict: str, trial_id: int) -> str:
        if verdict in ("lost", "finished", "missing") and (lease := self._leases.pop(trial_id, None)) is not None:
            self._ended.add(trial_id)
            self._caches[lease.study_id].read_at = float("-inf")  # somebody changed what was held to be our own
        refuse(verdict, trial_id)
        return verdict
