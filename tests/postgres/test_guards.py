"""Each guard of the storage keeps a promise: the promise holds as shipped, and is broken once the guard is taken away.

A guard is taken away in the text of its function, which is made again for that test. Where two things must overlap, one
stands in an open transaction while the other is watched until it waits for it, or is through.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pytest
import sqlalchemy
from optuna.trial import TrialState, create_trial
from psycopg2.errors import DeadlockDetected, LockNotAvailable, UniqueViolation
from sqlalchemy import URL

from storage.engine import open_rdb_storage
from storage.leases import LeaseLost
from storage.schema import FILES
from tests.postgres.scene import Scene, ask

SCHEMA = "".join(files("storage").joinpath(name).read_text() for name in FILES)
BATCH = 10  # rows that PL/pgSQL fetches, and thereby locks, at the first turn of a loop


# What is promised


def trials_made_at_once_get_numbers_in_a_row(scene: Scene) -> None:
    with scene.session() as first:
        ask(first, *scene.creation("first"))
        scene.during(first, lambda: scene.create("second"))
    assert scene.numbers() == [0, 1]


def trials_made_at_once_with_optuna_get_numbers_in_a_row(scene: Scene) -> None:
    optunas, ours = open_rdb_storage(scene.url), list[Future[int]]()

    def create(connection: Any) -> None:
        ours.append(pool.submit(scene.create, "ours"))
        scene.see_waiting(ours[0], connection.connection.dbapi_connection.info.backend_pid)

    with ThreadPoolExecutor(1) as pool:
        sqlalchemy.event.listen(optunas.engine, "commit", create, once=True)
        optunas.create_new_trial(scene.study_id)
    assert (ours[0].result() > 0, scene.numbers()) == (True, [0, 1])


def creation_sent_twice_makes_one_trial(scene: Scene) -> None:
    assert scene.create("again") == scene.create("again")


def claims_at_once_keep_the_budget(scene: Scene) -> None:
    scene.storage.manage(scene.study_id, 1, lease_s=3600)
    with scene.session() as first:
        ask(first, *scene.claiming("first"))
        verdict = scene.during(first, lambda: scene.claim("second"))[0]
    assert (verdict, scene.numbers()) == ("wait", [0])


def claim_sent_twice_is_one_claim(scene: Scene) -> None:
    assert scene.claim("again") == scene.claim("again")


def waiting_trial_is_taken_once_by_us_or_by_optuna(scene: Scene) -> None:
    waiting = scene.storage.create_new_trial(scene.study_id, create_trial(state=TrialState.WAITING))
    with scene.session() as optunas:
        ask(optunas, "UPDATE trials SET state = 'RUNNING' WHERE trial_id = %s", waiting)
        claimed = scene.during(optunas, scene.claim)[1]
    assert claimed != waiting


def renewal_in_the_middle_of_a_sweep_keeps_the_trial(scene: Scene) -> None:
    trials = [scene.claimed() for _ in range(BATCH + 1)]
    renewed = trials[-1]  # chosen by the sweep, and not yet locked while the first one keeps it waiting
    scene.expire()

    def renew() -> None:
        assert scene.renew(*renewed)
        scene.ask("UPDATE incident_hpo.leases SET expires = 'infinity' WHERE trial_id = %s", renewed[0])

    with scene.session() as first:
        ask(first, "SELECT trial_id FROM incident_hpo.leases WHERE trial_id = %s FOR UPDATE", trials[0][0])
        swept = scene.during(first, scene.sweep, renew)
    assert (swept, scene.state(renewed[0])) == (BATCH, "RUNNING")


def sweep_waits_for_no_writer(scene: Scene) -> None:
    (busy, _), _ = scene.claimed(), scene.claimed()
    scene.expire()
    with scene.session() as writer, scene.session() as sweeper:
        ask(writer, "SELECT trial_id FROM trials WHERE trial_id = %s FOR UPDATE", busy)
        ask(sweeper, "SET lock_timeout = '100ms'")
        assert ask(sweeper, "SELECT incident_hpo.sweep_v1(%s, 1e10)", scene.study_id) == 1


def nobody_sweeps_within_a_lease_of_the_own_reconnect(scene: Scene) -> None:
    scene.claimed()
    scene.expire()
    assert scene.sweep(connected_s=0.5e-3) == 0


def nobody_sweeps_within_a_lease_of_the_servers_start(scene: Scene) -> None:
    scene.claimed()
    scene.expire()
    scene.storage.manage(scene.study_id, 100, lease_s=1e9)  # no test's server is so old
    assert scene.sweep() == 0


def sweep_leaves_what_has_finished(scene: Scene) -> None:
    trial_id, _ = scene.claimed()
    scene.ask("UPDATE trials SET state = 'COMPLETE' WHERE trial_id = %s", trial_id)
    scene.expire()
    assert (scene.sweep(), scene.state(trial_id)) == (1, "COMPLETE")


def tell_sent_twice_is_one_tell(scene: Scene) -> None:
    trial_id, token = scene.claimed()
    assert [scene.save(trial_id, token, "COMPLETE", '{"outcome": ["0.5"]}') for _ in range(2)] == ["ok", "ok"]


def worker_that_lost_its_lease_writes_nothing(scene: Scene) -> None:
    late = scene.lost()
    assert (scene.save(*late, "COMPLETE"), scene.state(late[0])) == ("lost", "WAITING")
    scene.claimed()
    assert (scene.save(*late, "COMPLETE"), scene.state(late[0])) == ("lost", "RUNNING")


def writer_without_a_lease_is_refused_while_another_holds_one(scene: Scene) -> None:
    trial_id, _ = scene.claimed()
    assert (scene.save(trial_id, None, "FAIL"), scene.state(trial_id)) == ("lost", "RUNNING")


def finished_trial_stays_as_it_is(scene: Scene) -> None:
    trial_id, token = scene.claimed()
    scene.ask("UPDATE trials SET state = 'COMPLETE' WHERE trial_id = %s", trial_id)
    assert (scene.save(trial_id, token, "FAIL"), scene.state(trial_id)) == ("finished", "COMPLETE")


def tell_by_optuna_at_the_same_moment_stands(scene: Scene) -> None:
    trial_id, token = scene.claimed()
    with scene.session() as optunas:
        ask(optunas, "UPDATE trials SET state = 'COMPLETE' WHERE trial_id = %s", trial_id)
        verdict = scene.during(optunas, lambda: scene.save(trial_id, token, "FAIL"))
    assert (verdict, scene.state(trial_id)) == ("finished", "COMPLETE")


def lost_lease_is_not_renewed(scene: Scene) -> None:
    late = scene.lost()
    assert not scene.renew(*late)
    scene.claimed()
    assert not scene.renew(*late)


def lost_lease_is_not_released(scene: Scene) -> None:
    late = scene.lost()
    assert not scene.release(*late)
    scene.claimed()
    assert (scene.release(*late), scene.state(late[0])) == (False, "RUNNING")


def release_and_a_writer_take_their_locks_in_one_order(scene: Scene) -> None:
    held = scene.claimed()
    with scene.session() as writer:
        ask(writer, "SELECT trial_id FROM trials WHERE trial_id = %s FOR NO KEY UPDATE", held[0])
        renew = "UPDATE incident_hpo.leases SET expires = expires WHERE trial_id = %s"
        assert scene.during(writer, lambda: scene.release(*held), lambda: ask(writer, renew, held[0]))


def lost_lease_counts_no_attempts_anew(scene: Scene) -> None:
    late = scene.lost()
    scene.ask("SELECT incident_hpo.resumed_v1(%s, %s, 500)", *late)
    assert scene.claim()[3] == 2
    scene.ask("SELECT incident_hpo.resumed_v1(%s, %s, 500)", *late)
    assert scene.ask("SELECT attempts, reached FROM incident_hpo.leases WHERE trial_id = %s", late[0]) == (2, 0)


def process_that_lost_its_lease_writes_on_no_other_path(scene: Scene) -> None:
    trial_id = scene.storage.claim(scene.study_id, "worker").trial_id
    assert trial_id is not None
    scene.expire()
    scene.sweep()
    for _ in range(2):
        with suppress(LeaseLost):
            scene.storage.set_trial_state_values(trial_id, TrialState.FAIL)
    assert scene.state(trial_id) == "WAITING"


# What keeps it


@dataclass(frozen=True)
class Guard:
    promise: Callable[[Scene], None]
    function: str
    line: str  # or part of it, in schema.sql
    without: str  # what is left of it
    breaks_with: type[Exception] = AssertionError

    def source(self) -> str:
        found = re.search(
            rf"CREATE FUNCTION incident_hpo\.{self.function}\(.*?^END \$\$;", SCHEMA, re.DOTALL | re.MULTILINE
        )
        assert found, f"no function {self.function}"
        return found[0].replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)

    def weakened(self) -> str:
        assert self.line in self.source(), f"{self.function} has changed: {self.line} is not there"
        return self.source().replace(self.line, self.without)


STUDY = "WHERE study_id = p_study FOR NO KEY UPDATE;"
NO_LOCK = "WHERE study_id = p_study;"
RUNNING = " AND state = 'RUNNING'"
LEASED = "WHERE trial_id = p_trial AND token = p_token AND held"
RENEWED = "l.token = p_token AND l.held AND "
JUST_CONNECTED = "make_interval(secs => p_connected_s) < span"
JUST_STARTED = "clock_timestamp() < pg_postmaster_start_time() + span"
TOLD = "lease.told = p_token AND now_state = p_state"
IS_HOLDER = "coalesce(lease.held AND lease.token = p_token, false)"
IS_HELD = "lease.held AND lease.token IS NOT NULL"
TRIAL = "WHERE t.trial_id = p_trial"
LOCK = "    PERFORM FROM public.trials WHERE trial_id = p_trial FOR NO KEY UPDATE;\n"
GUARDS = [
    Guard(trials_made_at_once_get_numbers_in_a_row, "create_v1", STUDY, NO_LOCK, UniqueViolation),
    Guard(trials_made_at_once_with_optuna_get_numbers_in_a_row, "create_v1", STUDY, NO_LOCK, UniqueViolation),
    Guard(
        creation_sent_twice_makes_one_trial, "create_v1", "WHERE request = p_request", "WHERE false", UniqueViolation
    ),
    Guard(claims_at_once_keep_the_budget, "claim_v1", STUDY, NO_LOCK),
    Guard(claim_sent_twice_is_one_claim, "claim_v1", "WHERE l.request = p_request", "WHERE false"),
    Guard(
        waiting_trial_is_taken_once_by_us_or_by_optuna, "claim_v1", "LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED", "LIMIT 1"
    ),
    Guard(renewal_in_the_middle_of_a_sweep_keeps_the_trial, "sweep_v1", "AND held AND expires < clock_timestamp()", ""),
    Guard(sweep_waits_for_no_writer, "sweep_v1", "OF t SKIP LOCKED", "OF t", LockNotAvailable),
    Guard(nobody_sweeps_within_a_lease_of_the_own_reconnect, "sweep_v1", f"OR {JUST_CONNECTED}", ""),
    Guard(nobody_sweeps_within_a_lease_of_the_servers_start, "sweep_v1", f"OR {JUST_STARTED}", ""),
    Guard(sweep_leaves_what_has_finished, "requeue_v1", RUNNING, ""),
    Guard(tell_sent_twice_is_one_tell, "save_v1", TOLD, "false"),
    Guard(worker_that_lost_its_lease_writes_nothing, "save_v1", f"NOT {IS_HOLDER}", "false"),
    Guard(writer_without_a_lease_is_refused_while_another_holds_one, "save_v1", IS_HELD, "false"),
    Guard(finished_trial_stays_as_it_is, "save_v1", "now_state NOT IN ('WAITING', 'RUNNING') THEN", "false THEN"),
    Guard(tell_by_optuna_at_the_same_moment_stands, "save_v1", f"{TRIAL} FOR NO KEY UPDATE", TRIAL),
    Guard(lost_lease_is_not_renewed, "renew_v1", RENEWED, "l.held AND "),
    Guard(lost_lease_is_not_renewed, "renew_v1", RENEWED, "l.token = p_token AND "),
    Guard(lost_lease_is_not_released, "release_v1", LEASED, "WHERE trial_id = p_trial AND held"),
    Guard(lost_lease_is_not_released, "release_v1", LEASED, "WHERE trial_id = p_trial AND token = p_token"),
    Guard(lost_lease_counts_no_attempts_anew, "resumed_v1", LEASED, "WHERE trial_id = p_trial AND held"),
    Guard(lost_lease_counts_no_attempts_anew, "resumed_v1", LEASED, "WHERE trial_id = p_trial AND token = p_token"),
    Guard(release_and_a_writer_take_their_locks_in_one_order, "release_v1", LOCK, "", DeadlockDetected),
]


@pytest.fixture
def scene(module_database: URL) -> Iterator[Scene]:
    scene = Scene(module_database)
    yield scene
    scene.storage.remove_session()


def name(guard: Guard) -> str:
    return f"{guard.function} {guard.promise.__name__}"


@pytest.mark.parametrize("guard", GUARDS, ids=name)
def test_promise_is_kept_with_its_guard_and_broken_without(scene: Scene, guard: Guard) -> None:
    guard.promise(scene)
    other = Scene(scene.url)
    scene.ask(guard.weakened())
    try:
        with pytest.raises(guard.breaks_with):
            guard.promise(other)
    finally:
        scene.ask(guard.source())
        other.storage.remove_session()


def test_tombstone_keeps_a_process_that_lost_its_lease_from_every_other_path(scene: Scene) -> None:
    process_that_lost_its_lease_writes_on_no_other_path(scene)


def test_without_the_tombstone_a_process_that_lost_its_lease_writes(scene: Scene) -> None:
    class Forgetful(set[int]):
        def add(self, _: int) -> None: ...

    scene.storage._ended = Forgetful()
    with pytest.raises(AssertionError):
        process_that_lost_its_lease_writes_on_no_other_path(scene)


def test_every_guard_that_the_schema_names_is_taken_away_here() -> None:
    marked = [line for line in SCHEMA.splitlines() if "-- guard: " in line]
    assert len(marked) == SCHEMA.count("guard: ") > 0
    assert [line for line in marked if not any(guard.line in line for guard in GUARDS)] == []
