"""What the examples for systemd, Slurm and Kubernetes say, held to the exit codes and the stop time of workers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from configparser import RawConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import psutil
import pytest
import yaml
from sqlalchemy import make_url

from hpo.connect import PASSWORD_FILE, read_password
from hpo.errors import HpoError, InputError, Interrupted, SetupError
from hpo.launcher import STOP_TIMEOUT_S
from tests.conftest import REPOSITORY, TEST_ALL

EXAMPLES = REPOSITORY / "examples"
UNIT = EXAMPLES / "systemd" / "hpo-launch@.service"
ENVIRONMENT = EXAMPLES / "systemd" / "hpo.env"
SCRIPT = EXAMPLES / "slurm" / "hpo-array.sh"
JOB = EXAMPLES / "kubernetes" / "job.yaml"
SECRET = EXAMPLES / "kubernetes" / "secret.yaml"
DOCS = REPOSITORY / "docs" / "clusters.md"

INTERRUPTED, FAILED, BAD_INPUT = Interrupted.exit_code, HpoError.exit_code, InputError.exit_code
BROKEN_SETUP, DEFECT, OUT_OF_MEMORY = SetupError.exit_code, 70, 137
FOR_GOOD = {FAILED, BAD_INPUT, BROKEN_SETUP}
EXPOSURE = 40  # of 100, by systemd-analyze: what an unit needs that reaches GPUs and a network
DEADLINE_S = 20.0
SIGNAL_WINDOW_S = 60  # Slurm sends a signal so much earlier than it was asked to, but never later
# Of sbatch 22.05, those that make sense in a script.
SBATCH = """
account array begin chdir clusters comment constraint contiguous cores-per-socket cpu-freq cpus-per-gpu cpus-per-task
deadline delay-boot dependency distribution error exclude exclusive export gpu-bind gpu-freq gpus gpus-per-node
gpus-per-socket gpus-per-task gres gres-flags hold input job-name kill-on-invalid-dep licenses mail-type mail-user mem
mem-bind mem-per-cpu mem-per-gpu mincpus network nice no-kill no-requeue nodelist nodes ntasks ntasks-per-core
ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output overcommit oversubscribe partition priority profile
propagate qos reboot requeue reservation signal spread-job switches threads-per-core time time-min tmp wait-all-nodes
"""
# A worker that says so when it is ready, and then ends with the code it was given, or a while after it is told to stop.
WORKER = """#!{python} -u
import os, signal, sys, time
def stop(*_):
    print("SIGTERM")
    time.sleep(0.3)
    sys.exit({interrupted})
signal.signal(signal.SIGTERM, stop)
print(os.getpid(), *sys.argv[1:])
if code := os.environ.get("CODE"):
    sys.exit(int(code))
while True:
    signal.pause()
"""
STEP = """#!/bin/sh
while expr "$1" : -- >/dev/null; do shift; done
exec "$@"
"""


def test_no_example_holds_a_password() -> None:
    for path in (*EXAMPLES.glob("systemd/*"), *EXAMPLES.glob("slurm/*"), *EXAMPLES.glob("kubernetes/*"), DOCS):
        text = path.read_text()
        urls = re.findall(r"postgres\w*(?:\+\w+)?://[^\s\"'`]+", text)
        assert all(make_url(url).password is None for url in urls), path
        assert not re.search(r"PGPASSWORD|--from-literal", text), path
        assert set(re.findall(r"\bpassword[=:]\s*(\S+)", text)) <= {"REPLACE-ME"}, path


# systemd


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is here; without systemd-analyze skipped, under HPO_TEST_ALL=1 it fails."""
    if shutil.which("systemd-analyze") is None:
        missing = "no systemd-analyze: apt-get install systemd"
        pytest.fail(missing) if TEST_ALL else pytest.skip(missing)
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace("/opt/hpo/bin/hpo", sys.executable))
    return path


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def service() -> dict[str, str]:
    """What [Unit] and [Service] set, each key once."""
    parser = RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return dict(parser["Unit"]) | dict(parser["Service"])


def codes(text: str) -> set[int]:
    return set(map(int, text.split()))


def test_systemd_takes_the_unit_without_a_word(unit: Path) -> None:
    done = analyze("verify", unit)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_unit_lets_a_worker_do_little_beside_its_work(unit: Path) -> None:
    done = analyze("security", "--offline=yes", f"--threshold={EXPOSURE}", unit)
    assert done.returncode == 0, done.stdout


def test_systemd_starts_what_was_interrupted_and_nothing_that_another_start_would_not_mend() -> None:
    found = service()
    assert found["Restart"] == "on-failure"
    assert codes(found["RestartPreventExitStatus"]) == FOR_GOOD
    # No failure when it is stopped in its first second, and yet started again when it ends so by itself.
    assert codes(found["SuccessExitStatus"]) == codes(found["RestartForceExitStatus"]) == {INTERRUPTED}
    assert (int(found["StartLimitBurst"]) + 1) * int(found["RestartSec"]) < int(found["StartLimitIntervalSec"])


def test_systemd_tells_the_first_process_alone_and_waits_until_trials_are_given_back() -> None:
    found = service()
    assert (found["KillSignal"], found["KillMode"]) == ("SIGTERM", "mixed")
    assert int(found["TimeoutStopSec"]) > STOP_TIMEOUT_S
    assert found["OOMPolicy"] == "continue"


def test_unit_keeps_the_gpus_in_reach() -> None:
    closing = {"PrivateDevices", "DeviceAllow", "DevicePolicy", "ProtectClock", "MemoryDenyWriteExecute"}
    assert not closing & service().keys()


def test_unit_runs_as_a_user_of_its_own_who_writes_to_what_the_box_keeps() -> None:
    found = service()
    assert found["User"] not in ("", "root")
    assert (found["ProtectSystem"], found["NoNewPrivileges"]) == ("strict", "yes")
    assert f"HPO_HOME=%S/{found['StateDirectory']}" in found["Environment"].split()
    assert found["WorkingDirectory"] == f"%S/{found['StateDirectory']}"
    given = dict(re.findall(r"^(\w+)=(.+)$", ENVIRONMENT.read_text(), re.MULTILINE))
    assert given.keys() == {"HPO_STORAGE", "PGPASSFILE"}


# Slurm


@dataclass(frozen=True)
class Task:
    """The script as a task of an array, among stand-ins of Slurm's commands."""

    process: subprocess.Popen[str]
    worker: int
    arguments: list[str]
    requeued: Path

    def end(self) -> tuple[int, str, list[str]]:
        """Its exit code, what its worker said, and what it asked of scontrol."""
        said = self.process.communicate(timeout=DEADLINE_S)[0]
        asked = self.requeued.read_text().splitlines() if self.requeued.exists() else []
        return self.process.returncode, said, asked


def start(folder: Path, state: str, code: int | None = None) -> Task:
    """Returns when the worker is ready. `state` is what squeue says of the job, `code` what the worker ends with."""
    bin_, requeued = folder / "bin", folder / "requeued"
    bin_.mkdir()
    stand_ins = {
        "hpo": WORKER.format(python=sys.executable, interrupted=INTERRUPTED),
        "srun": STEP,
        "squeue": f"#!/bin/sh\necho {state}\n",
        "scontrol": f'#!/bin/sh\necho "$@" >> {requeued}\n',
    }
    for name, text in stand_ins.items():
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{bin_}:{os.environ['PATH']}", "CODE": "" if code is None else str(code)}
    environment |= {"USER": "somebody", "SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    process = subprocess.Popen(
        ["bash", SCRIPT, "servicedesk"], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    worker, *arguments = process.stdout.readline().split()
    return Task(process, int(worker), arguments, requeued)


def sbatch_options() -> dict[str, str]:
    lines = [line.split()[1:] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert all(len(words) == 1 and words[0].startswith("--") for words in lines), lines
    pairs = [words[0].removeprefix("--").partition("=") for words in lines]
    assert len({name for name, _, _ in pairs}) == len(pairs)
    return {name: value for name, _, value in pairs}


def test_array_script_is_sound_shell() -> None:
    for command in ([Path(sys.executable).with_name("shellcheck")], ["bash", "-n"]):
        done = subprocess.run(
            [*map(str, command), SCRIPT], capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_array_script_asks_sbatch_for_a_gpu_each_a_timely_signal_and_another_run() -> None:
    options = sbatch_options()
    assert options.keys() <= set(SBATCH.split())
    assert re.fullmatch(r"0-\d+", options["array"])
    assert (options["ntasks"], options["gres"]) == ("1", "gpu:1")
    assert options["requeue"] == ""
    assert options["open-mode"] == "append"
    # To the step: with B: the shell would hear of it, and would have to tell a worker that is told at other times too.
    name, _, ahead_s = options["signal"].partition("@")
    assert name == "TERM"
    assert int(ahead_s) > STOP_TIMEOUT_S
    hours, _, _ = options["time"].partition(":")
    assert int(hours) * 3600 > 10 * (int(ahead_s) + SIGNAL_WINDOW_S)


@pytest.mark.parametrize("code", [0, FAILED, BAD_INPUT, DEFECT, INTERRUPTED, BROKEN_SETUP, OUT_OF_MEMORY])
def test_task_ends_with_its_workers_code_and_is_requeued_after_75_alone(tmp_path: Path, code: int) -> None:
    task = start(tmp_path, "RUNNING", code)
    assert task.arguments == ["worker", "servicedesk"]
    assert task.end() == (code, "", ["requeue 7_3"] if code == INTERRUPTED else [])


def test_task_whose_worker_is_told_to_stop_is_requeued_once_it_has_stopped(tmp_path: Path) -> None:
    task = start(tmp_path, "RUNNING")
    os.kill(task.worker, signal.SIGTERM)
    assert task.end() == (INTERRUPTED, "SIGTERM\n", ["requeue 7_3"])


def test_cancelled_task_tells_its_worker_once_outlives_it_and_does_not_come_back(tmp_path: Path) -> None:
    task = start(tmp_path, "COMPLETING")
    os.killpg(task.process.pid, signal.SIGTERM)  # as scancel: the shell and the step at once
    assert task.end() == (INTERRUPTED, "SIGTERM\n", [])
    assert not psutil.pid_exists(task.worker)


# Kubernetes


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def pod() -> dict[str, Any]:
    found: dict[str, Any] = load(JOB)["spec"]["template"]["spec"]
    return found


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("path", [JOB, SECRET], ids=lambda path: path.stem)
def test_manifest_is_one_that_the_newest_kubernetes_knows_to_the_last_key(path: Path) -> None:
    newest = kubernetes_validate.latest_version()
    kubernetes_validate.validate(load(path), newest, strict=True)


def what_follows(code: int) -> str:
    """As the Job's controller decides: the first rule that names the code, else a failure that is counted."""
    for rule in load(JOB)["spec"]["podFailurePolicy"]["rules"]:
        named = rule.get("onExitCodes")
        if named and named["containerName"] == container()["name"] and code in named["values"]:
            assert named["operator"] == "In"
            return str(rule["action"])
    return "Count"


@pytest.mark.parametrize(
    ("code", "action"),
    [
        (INTERRUPTED, "Ignore"),
        (FAILED, "FailIndex"),
        (BROKEN_SETUP, "FailIndex"),
        (BAD_INPUT, "FailJob"),
        (DEFECT, "Count"),
        (OUT_OF_MEMORY, "Count"),
    ],
)
def test_job_takes_each_exit_code_for_what_it_is(code: int, action: str) -> None:
    assert what_follows(code) == action


def test_job_forgives_what_befell_a_pod_before_it_looks_at_codes_and_counts_the_rest_for_each_index() -> None:
    spec = load(JOB)["spec"]
    first, *others = spec["podFailurePolicy"]["rules"]
    named = [code for rule in others for code in rule["onExitCodes"]["values"]]
    assert len(set(named)) == len(named)
    assert first == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert (spec["completionMode"], spec["template"]["spec"]["restartPolicy"]) == ("Indexed", "Never")
    assert spec["completions"] == spec["parallelism"]
    assert spec["backoffLimitPerIndex"] > 3  # a trial may take its pod's memory, and its pod, three times


def test_pod_has_time_to_give_its_trial_back() -> None:
    assert pod()["terminationGracePeriodSeconds"] > STOP_TIMEOUT_S


def test_pod_has_no_rights_but_to_work() -> None:
    assert pod()["automountServiceAccountToken"] is False
    security = pod()["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_pod_reads_the_password_from_the_secret_as_kubernetes_mounts_it(tmp_path: Path) -> None:
    file = Path(next(entry["value"] for entry in container()["env"] if entry["name"] == PASSWORD_FILE))
    mount = next(mount["name"] for mount in container()["volumeMounts"] if Path(mount["mountPath"]) == file.parent)
    secret = next(volume["secret"] for volume in pod()["volumes"] if volume["name"] == mount)
    assert secret["secretName"] == load(SECRET)["metadata"]["name"]
    mounted = tmp_path / file.name
    mounted.write_text(load(SECRET)["stringData"][file.name] + "\n")  # as an editor leaves it
    mounted.chmod(secret["defaultMode"])
    assert (mounted.stat().st_mode & 0o777, "fsGroup" in pod()["securityContext"]) == (0o440, True)
    assert read_password(mounted) == "REPLACE-ME"


def test_pod_can_write_where_the_service_writes_and_has_one_gpu() -> None:
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    places = {mount["mountPath"] for mount in container()["volumeMounts"] if "emptyDir" in volumes[mount["name"]]}
    environment = {entry["name"]: entry["value"] for entry in container()["env"]}
    assert {environment["HPO_HOME"], environment["HOME"], "/tmp", "/dev/shm"} <= places
    assert {mount["name"] for mount in container()["volumeMounts"]} == volumes.keys()
    assert container()["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_page_on_clusters_says_what_follows_from_every_exit_code() -> None:
    named = {int(code) for code in re.findall(r"^\| (\d+)\b", DOCS.read_text(), re.MULTILINE)}
    assert named == {0, INTERRUPTED, DEFECT, OUT_OF_MEMORY} | FOR_GOOD
