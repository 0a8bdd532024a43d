"""Any order of what workers, their deaths and strangers may do to a study: what the storage promises holds throughout.

A model of rows (trial, lease) foretells what each step does. Time is made by hand: a lease that a step wrote never ends
by itself, and one that `expire` chose has ended, so that no step depends on how fast the machine is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from itertools import count, zip_longest
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy import URL

from storage.leases import LeaseLost
from storage.native import PostgresStorage
from tests.postgres.foretold import KEEP_TIME, LEASE_S, LOOK, Row, Run, Server

NUMBERS = count()
STEPS_OF_EXAMPLE = 50
X = optuna.distributions.FloatDistribution(0, 1)
PRUNER = optuna.pruners.MedianPruner(n_startup_trials=1)
workers = st.integers(0, 2)
values = st.sampled_from([0.0, 0.25, 0.5, 1.0])
indexes = st.integers(0, 11)


class Workers(RuleBasedStateMachine):
    runs: Bundle[Run] = Bundle("runs")
    over: Bundle[Run] = Bundle("over")  # told or released, so that all that is said of it comes too late
    tells: Bundle[tuple[Run, int, str, str]] = Bundle("tells")
    strangers: Bundle[int] = Bundle("strangers")

    server: Server

    def __init__(self) -> None:
        super().__init__()
        self.plain = self.server.plain
        self.rows: list[Row] = []
        self.newest: dict[int, int] = {}  # token by trial
        self.given: set[int] = set()  # every token so far
        self.tokens: dict[Run, int | None] = {}  # None: the process knows that it runs the trial no more
        self.studies: dict[PostgresStorage, optuna.Study] = {}
        self.told: set[Run] = set()
        self.foreign: set[int] = set()
        self.paused: list[PostgresStorage] = []

    @initialize(budget=st.integers(3, 12))
    def begin(self, budget: int) -> None:
        sampler, name = optuna.samplers.RandomSampler(seed=0), f"study {next(NUMBERS)}"
        self.stranger = optuna.create_study(study_name=name, storage=self.plain, sampler=sampler)
        self.study_id, self.budget = self.stranger._study_id, budget
        self.server.workers[0].manage(self.study_id, budget, LEASE_S)

    # What workers do, in time or too late

    @rule(target=runs, worker=workers)
    def claim(self, worker: int) -> Any:
        rows, storage = [row.swept() for row in self.rows], self.server.workers[worker]
        claim = storage.claim(self.study_id, "worker")
        if sum(row.state != "WAITING" for row in rows) >= self.budget:
            assert claim.verdict == ("wait" if any(row.state == "RUNNING" for row in rows) else "done")
            self.expect(rows)
            return multiple()
        number = next((row.number for row in rows if row.state == "WAITING"), len(rows))
        attempt = rows[number].attempts + 1 if number < len(rows) else 1
        assert (claim.verdict, claim.attempt) == ("claimed", attempt)
        assert claim.trial_id is not None
        before = rows[number] if number < len(rows) else Row.new(claim.trial_id, number)
        taken = before._replace(state="RUNNING", held=True, token=claim.token, attempts=attempt)
        self.check_start(storage, claim.trial_id)
        self.expect([*rows[:number], taken, *rows[number + 1 :]])
        self.tokens[run := Run(storage, claim.trial_id)] = claim.token
        return run

    def check_start(self, storage: PostgresStorage, trial_id: int) -> None:
        trial = storage.get_trial(trial_id)
        assert trial == self.plain.get_trial(trial_id)
        assert not trial.intermediate_values or trial_id not in self.newest

    @precondition(lambda self: any(row.request and row.token for row in self.rows))
    @rule(index=indexes)
    def claim_sent_again(self, index: int) -> None:
        claimed = [row for row in self.rows if row.request and row.token]
        row = claimed[index % len(claimed)]
        again = self.server.ask(
            "SELECT * FROM incident_hpo.claim_v1(%s, %s, 'worker', 1e6)", self.study_id, row.request
        )
        assert again == [("claimed", row.trial_id, row.token, row.attempts)]
        self.expect(self.rows)

    @rule(run=runs)
    def renew(self, run: Run) -> None:
        is_held = self.holds(run)
        assert self.server.ask("SELECT incident_hpo.renew_v1(%s, %s)", run.trial_id, self.tokens[run]) == [(is_held,)]
        self.expect(self.rows)
        assert not is_held or not self.row(run.trial_id).expired

    @rule(run=runs, value=values, params_hash=st.sampled_from([None, "a"]))
    def flush(self, run: Run, value: float, params_hash: str | None) -> None:
        others = [row for row in self.rows if row.held and row.trial_id != run.trial_id]
        is_equal = params_hash is not None and any(row.params_hash == params_hash for row in others)
        before = self.row(run.trial_id)

        def send() -> None:
            run.storage.set_trial_param(run.trial_id, "x", value, X)
            run.storage.set_trial_user_attr(run.trial_id, "note", value)
            assert run.storage.flush(run.trial_id, params_hash=params_hash) == (not is_equal)

        if self.write(run, send):
            assert not is_equal or before == self.row(run.trial_id)
            assert is_equal or self.plain.get_trial(run.trial_id).params == {"x": value}

    @rule(run=runs, step=st.integers(0, 3), value=values)
    def report(self, run: Run, step: int, value: float) -> None:
        if self.write(run, lambda: run.storage.set_trial_intermediate_value(run.trial_id, step, value)):
            assert self.plain.get_trial(run.trial_id).intermediate_values[step] == value
            others = [other for other in self.tokens if other.storage is run.storage and self.tokens[other]]
            if all(self.holds(other) and not self.row(other.trial_id).finished for other in others):
                self.should_prune(run)

    def should_prune(self, run: Run) -> None:
        if run.storage not in self.studies:
            self.studies[run.storage] = optuna.Study(self.stranger.study_name, run.storage)
        decision = PRUNER.prune(self.studies[run.storage], run.storage.get_trial(run.trial_id))
        assert decision == PRUNER.prune(self.stranger, self.plain.get_trial(run.trial_id))

    @rule(target=over, run=consumes(runs), reason=st.sampled_from([None, "it broke"]))
    def give_back(self, run: Run, reason: str | None) -> Run:
        self.release(run, reason)
        return run

    @rule(target=tells, run=runs, state=st.sampled_from(["COMPLETE", "PRUNED", "FAIL"]), value=values)
    def tell(self, run: Run, state: str, value: float) -> Any:
        token, outcome = self.tokens[run], None if state == "FAIL" else [value]
        recorded = self.row(run.trial_id).finished
        save = run.storage.set_trial_state_values
        if not self.write(run, lambda: save(run.trial_id, TrialState[state], outcome), state):
            return multiple()
        self.tokens[run] = None
        self.told.add(run)
        told = self.plain.get_trial(run.trial_id)
        assert recorded or (told.state.name, told.values) == (state, outcome)
        return run, token, json.dumps({} if outcome is None else {"outcome": [str(value)]}), state

    @rule(told=tells)
    def tell_sent_again(self, told: tuple[Run, int, str, str]) -> None:
        run, *arguments = told
        again = self.server.ask("SELECT verdict FROM incident_hpo.save_v1(%s, %s, %s, %s)", run.trial_id, *arguments)
        assert again == [("ok",)]
        self.expect(self.rows)

    @rule(target=over, run=consumes(runs), value=values, state=st.sampled_from(["COMPLETE", "PRUNED"]))
    def finish(self, run: Run, value: float, state: str) -> Run:
        self.flush(run, value, None)
        self.report(run, 0, value)
        self.tell(run, state, value)
        return run

    @rule(run=over, value=values, state=st.sampled_from(["COMPLETE", "PRUNED", "FAIL"]))
    def say_it_late(self, run: Run, value: float, state: str) -> None:
        self.report(run, 3, value)
        self.flush(run, value, None)
        self.release(run, "it broke")
        self.tell(run, state, value)

    def release(self, run: Run, reason: str | None) -> None:
        row = self.row(run.trial_id)
        is_held = self.holds(run)
        assert run.storage.release(run.trial_id, reason=reason) == is_held
        self.tokens[run] = None
        after = row._replace(attempts=row.attempts - (reason is None)).requeued() if is_held else row
        self.expect([after if other is row else other for other in self.rows])

    @precondition(lambda self: len(self.paused) < 3)
    @rule(worker=workers)
    def crash(self, worker: int) -> None:
        """Another process takes the worker's place. The old one was only paused, as far as anybody knows."""
        self.paused.append(self.server.workers[worker])
        self.server.workers[worker] = self.server.worker()

    # What happens to leases

    @precondition(lambda self: any(row.held for row in self.rows) and not any(row.expired for row in self.rows))
    @rule(index=indexes)
    def expire(self, index: int) -> None:
        held = [row.trial_id for row in self.rows if row.held]
        trial_id = held[index % len(held)]
        self.server.ask("UPDATE incident_hpo.leases SET expires = '-infinity' WHERE trial_id = %s", trial_id)

    @rule()
    def sweep(self) -> None:
        rows = [row.swept() for row in self.rows]
        lost = sum(row.held and row.expired and not row.reported for row in self.rows)
        assert self.server.ask("SELECT incident_hpo.sweep_v1(%s, 1e6)", self.study_id) == [(lost,)]
        self.expect(rows)

    # What strangers do, by Optuna alone

    @precondition(lambda self: sum(row.state == "WAITING" for row in self.rows) < 2)
    @rule(value=values, worker=workers)
    def enqueue(self, value: float, worker: int) -> None:
        study = optuna.Study(self.stranger.study_name, self.server.workers[worker])
        study.enqueue_trial({"x": value})
        assert self.look()[-1].state == "WAITING"

    @precondition(lambda self: len(self.foreign) < 3)
    @rule(target=strangers)
    def ask(self) -> int:
        trial = self.stranger.ask()
        self.foreign.add(trial._trial_id)
        return trial._trial_id

    @rule(trial_id=strangers, step=st.integers(0, 3), value=values)
    def report_unleased(self, trial_id: int, step: int, value: float) -> None:
        row = self.row(trial_id)  # RDBStorage knows no fence, and caches take it that a waiting trial does not change
        if row.state == "RUNNING" and not (row.held and row.token):
            self.plain.set_trial_intermediate_value(trial_id, step, value)

    @precondition(lambda self: len(self.foreign) < 4 and any(not row.finished for row in self.rows))
    @rule(index=indexes, state=st.sampled_from([TrialState.COMPLETE, TrialState.FAIL]))
    def end_unleased(self, index: int, state: TrialState) -> None:
        unfinished = [row.trial_id for row in self.rows if not row.finished]
        self.foreign.add(trial_id := unfinished[index % len(unfinished)])
        self.plain.set_trial_state_values(trial_id, state, [999.0] if state == TrialState.COMPLETE else None)

    # What must hold

    @invariant()
    def step_is_sound(self) -> None:
        self.server.steps += 1
        self.look()

    def look(self) -> list[Row]:
        """The rows as they are, which must be rows that can follow those of the last look."""
        self.server.ask(KEEP_TIME, self.study_id)
        rows = [Row(*row) for row in self.server.ask(LOOK, self.study_id)]
        assert [row.number for row in rows] == list(range(len(rows)))
        assert len(rows) >= len(self.rows)
        begun = sum(row.state != "WAITING" and row.trial_id not in self.foreign for row in rows)
        assert begun <= self.budget
        for row, before in zip_longest(rows, self.rows):
            self.check(row, before)
        self.rows = rows
        return rows

    def check(self, row: Row, before: Row | None) -> None:
        assert row.attempts <= 3
        assert row.state == "RUNNING" or not row.held or (row.finished and row.trial_id in self.foreign)
        assert before is None or not before.finished or before.record() == row.record()
        if row.token not in (None, self.newest.get(row.trial_id)):
            assert row.token not in self.given
            self.given.add(row.token)
            self.newest[row.trial_id] = row.token

    def teardown(self) -> None:
        """What a process knows, once it has said what it had gathered, is what is there."""
        if hasattr(self, "study_id"):
            for run, token in self.tokens.items():
                if token is not None:
                    with suppress(LeaseLost, UpdateFinishedTrialError):
                        run.storage.flush(run.trial_id)
                run.storage.release(run.trial_id, reason=None)  # who holds a lease may read what was new a moment ago
            there = self.plain.get_all_trials(self.study_id)
            for storage in [*self.server.workers, *self.paused]:
                assert storage.get_all_trials(self.study_id) == there
        for storage in self.paused:
            storage.remove_session()

    # How it is done

    def row(self, trial_id: int) -> Row:
        return next(row for row in self.rows if row.trial_id == trial_id)

    def holds(self, run: Run) -> bool:
        row, token = self.row(run.trial_id), self.tokens[run]
        return token is not None and row.held and row.token == token

    def expect(self, rows: list[Row]) -> None:
        assert [row.facts() for row in self.look()] == [row.facts() for row in rows]

    def refusal(self, run: Run, state: str | None) -> type[Exception] | None:
        row, token = self.row(run.trial_id), self.tokens[run]
        if token is None and run not in self.told:
            return LeaseLost
        if row.finished:
            is_recorded = token is not None and (row.told, row.state) == (token, state)
            return None if is_recorded else UpdateFinishedTrialError
        return None if self.holds(run) else LeaseLost

    def write(self, run: Run, send: Callable[[], object], state: str | None = None) -> bool:
        """Whether it was accepted, as it had to be; otherwise it changed nothing."""
        before, refusal = self.rows, self.refusal(run, state)
        if refusal is None:
            send()
            return bool(self.look())
        with pytest.raises(refusal):
            send()
        self.tokens[run] = None
        assert self.look() == before
        return False


def run_machine(url: URL, examples: int) -> int:
    """How many steps were done."""

    class Machine(Workers):
        server = Server(url)

    checks, phases = list(HealthCheck), [Phase.generate]  # a failure is not made small: that takes minutes
    options = settings(max_examples=examples, stateful_step_count=STEPS_OF_EXAMPLE, deadline=None, derandomize=True)
    options = settings(options, database=None, phases=phases, suppress_health_check=checks)
    try:
        run_state_machine_as_test(Machine, settings=options)
    finally:
        Machine.server.close()
    return Machine.server.steps


def test_any_order_of_steps_keeps_the_promises(database: URL) -> None:
    assert run_machine(database, examples=60) > 1000


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_ten_thousand_steps_keep_the_promises(database: URL) -> None:
    assert run_machine(database, examples=330) > 10_000
