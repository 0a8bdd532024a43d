"""The script for Slurm under a real Slurm of one node, with real workers: what it does when it is cut short."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import URL

from hpo.launcher import STOP_TIMEOUT_S
from tests.chaos.crew import make_crew
from tests.conftest import REPOSITORY, TEST_ALL
from tests.postgres.conftest import Query
from tests.stub_trainer import write_stub

SCRIPT = REPOSITORY / "examples" / "slurm" / "hpo-array.sh"
DAEMONS = ("slurmctld", "slurmd")
DEADLINE_S = 60.0
LEASE_S = 120.0  # far beyond the deadlines here: a trial that waits was given back
TRIALS = 2
# As little as a node needs that hands out two things called GPU, and takes them away again for a better queue. What was
# requeued waits for `cred_expire`, two minutes where nobody sets it.
CONFIGURATION = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=1,sched_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2
PartitionName=graceful Nodes={host} PriorityTier=1 GraceTime=30 Default=YES
PartitionName=graceless Nodes={host} PriorityTier=1 GraceTime=0
PartitionName=urgent Nodes={host} PriorityTier=2 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Slurm:
    """Its commands, and how many trials of the study are in which state."""

    environment: dict[str, str]
    folder: Path
    query: Callable[[str], list[tuple[object, ...]]]

    def ask(self, *command: str | Path) -> str:
        words = list(map(str, command))
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, partition: str) -> str:
        """The script as it is; what a node of 32 GiB has and this machine may lack is set anew. Waits for a trial."""
        size = ("--array=0", "--mem=0", "--cpus-per-task=1", f"--partition={partition}")
        job = self.ask("sbatch", "--parsable", *size, f"--output={self.folder}/log", SCRIPT, "study")
        self.wait_until(lambda: self.trials("RUNNING") == 1)
        return job

    def preempt(self) -> None:
        self.ask("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true")

    def show(self, job: str) -> dict[str, str]:
        pairs = [word.partition("=") for word in self.ask("scontrol", "show", "job", "--oneliner", f"{job}_0").split()]
        return {name: value for name, _, value in pairs}

    def trials(self, state: str) -> int:
        (row,) = self.query(f"SELECT count(*) FROM public.trials WHERE state = '{state}'")
        return int(str(row[0]))

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def wait_until(self, holds: Callable[[], bool]) -> None:
        give_up = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < give_up, self.log()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """slurm.conf of a running Slurm; without Slurm the test is skipped, under HPO_TEST_ALL=1 it fails."""
    path = os.environ["PATH"] + ":/usr/sbin"
    if missing := [name for name in DAEMONS if shutil.which(name, path=path) is None]:
        words = f"no {' and no '.join(missing)}: apt-get install slurm-wlm"
        pytest.fail(words) if TEST_ALL else pytest.skip(words)
    folder = tmp_path_factory.mktemp("slurm")
    for number in range(2):
        (folder / f"gpu{number}").touch()
    host = socket.gethostname().partition(".")[0]
    values = {"folder": folder, "host": host, "ports": free_ports(2), "user": getpass.getuser()}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**values))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    with (folder / "log").open("w") as log:
        daemons = [subprocess.Popen([name, "-D"], env=environment, stdout=log, stderr=log) for name in DAEMONS]
    try:
        wait_until_idle(environment, folder / "log")
        yield folder / "slurm.conf"
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait(DEADLINE_S)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until_idle(environment: dict[str, str], log: Path) -> None:
    give_up = time.monotonic() + DEADLINE_S
    ask = ["sinfo", "--noheader", "--format=%T"]
    while "idle" not in subprocess.run(ask, env=environment, capture_output=True, text=True, check=False).stdout:
        assert time.monotonic() < give_up, log.read_text()
        time.sleep(0.1)


@pytest.fixture
def slurm(cluster: Path, database: URL, tmp_path: Path, query: Query) -> Iterator[Slurm]:
    """With a study of two trials of three seconds, and `hpo` on the path that knows where its database is."""
    make_crew(database, tmp_path, trials=TRIALS, lease_s=LEASE_S)
    stub = write_stub(tmp_path / "stub", steps=30, step_s=0.1)
    hpo = tmp_path / "bin" / "hpo"
    hpo.parent.mkdir()
    hpo.write_text(
        f"#!/bin/sh\nHPO_STORAGE='{database.render_as_string(hide_password=False)}' HPO_HOME={tmp_path}/home"
        f' PYTHONPATH={stub["PYTHONPATH"]} CUDA_VISIBLE_DEVICES= exec {sys.executable} -m hpo "$@"\n'
    )
    hpo.chmod(0o755)
    environment = os.environ | {"SLURM_CONF": str(cluster), "PATH": f"{hpo.parent}:{os.environ['PATH']}", "USER": "me"}
    found = Slurm(environment, tmp_path, lambda statement: query(database, statement))
    yield found
    found.ask("scancel", f"--user={getpass.getuser()}")
    found.wait_until(lambda: found.ask("squeue", "--noheader") == "")


def finish(slurm: Slurm, job: str) -> None:
    slurm.wait_until(lambda: slurm.show(job)["JobState"] == "COMPLETED")
    assert (slurm.show(job)["ExitCode"], slurm.trials("COMPLETE")) == ("0:0", TRIALS), slurm.log()


def test_task_that_is_preempted_with_grace_leaves_its_trial_and_goes_on_with_it_later(slurm: Slurm) -> None:
    job = slurm.submit("graceful")
    slurm.preempt()
    slurm.wait_until(lambda: slurm.show(job)["JobState"] == "PENDING")
    assert (slurm.trials("RUNNING"), slurm.trials("WAITING")) == (0, 1), slurm.log()
    finish(slurm, job)


def test_task_that_is_preempted_without_grace_leaves_its_trial_and_comes_back_once(slurm: Slurm) -> None:
    """Slurm tells the step twice, within milliseconds, and requeues it by itself."""
    job = slurm.submit("graceless")
    slurm.preempt()
    slurm.wait_until(lambda: slurm.show(job)["JobState"] == "PENDING")
    assert "Exited with exit code 75" in slurm.log()
    assert slurm.show(job)["Restarts"] == "1"
    assert (slurm.trials("RUNNING"), slurm.trials("WAITING")) == (0, 1), slurm.log()
    finish(slurm, job)


def test_cancelled_task_leaves_its_trial_and_stays_away(slurm: Slurm) -> None:
    job = slurm.submit("graceful")
    slurm.ask("scancel", job)
    began = time.monotonic()
    slurm.wait_until(lambda: slurm.show(job)["JobState"] == "CANCELLED")
    assert time.monotonic() - began < STOP_TIMEOUT_S
    assert (slurm.trials("RUNNING"), slurm.trials("WAITING")) == (0, 1), slurm.log()
    assert slurm.show(job)["Restarts"] == "0"
