"""The image that `make image` builds: what is in it, and its services as containers under the compose file's limits."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import REPOSITORY
from tests.deploy.containers import IMAGE, PODMAN, container, image, in_image, start, volume_name
from tests.deploy.stack import Done, Stack, check, new_stack, run
from tests.postgres.conftest import STUDY
from tests.servers import open_folder

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]
LARGEST_MIB = 2300  # a torch for CUDA would add thousands
CONTEXT = "localhost/incident-hpo-context:test"
LOOK = "touch /mine; touch /tmp/mine && echo /tmp; touch mine && pwd; grep -E 'NoNewPrivs|CapBnd' /proc/self/status"
DEMO = "hpo demo-data -o incidents.csv --incidents 600 && hpo run study.yaml --workers 1 -o results && hpo db stop"


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    done = run([*PODMAN, "image", "inspect", image()], dict(os.environ))
    found: dict[str, Any] = json.loads(done.stdout)[0]
    return found


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A database outside, without roles and tables yet."""
    image()
    with open_folder() as folder:
        made = new_stack(folder)
        check(made.make_certificates())
        with made.serving():
            yield made
        run([*PODMAN, "volume", "rm", "--force", volume_name(made, "home")], dict(os.environ))


@pytest.fixture(scope="module")
def migrated(stack: Stack) -> Stack:
    check(in_container(stack, "migrate"))
    return stack


@pytest.fixture(scope="module")
def searched(migrated: Stack, incidents_csv: Path) -> Stack:
    """A study of the host, with three trials."""
    shutil.copy(incidents_csv, migrated.folder / "studies/incidents.csv")
    (migrated.folder / "studies/small.yaml").write_text(STUDY)
    check(in_container(migrated, "hpo", "create", "/studies/small.yaml"))
    check(in_container(migrated, "worker", "worker", "small"))
    return migrated


def in_container(stack: Stack, service: str, *arguments: str, user: str = "") -> Done:
    return run(container(stack, service, *arguments, user=user), dict(os.environ))


def test_the_image_runs_hpo_as_a_user_of_its_own_and_stops_on_sigterm(described: dict[str, Any]) -> None:
    config = described["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["hpo"]
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert set(config["Volumes"]) == {"/var/lib/hpo"}
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert in_image("id", "-u").stdout == "10001\n"


def test_nothing_to_build_or_install_with_is_left() -> None:
    look = "for name in pip pip3 gcc cc g++ make; do command -v $name; done; python3 -m pip; find / -xdev -name .cache"
    done = in_image("sh", "-c", look, options=("--rm", "--network=none", "--user=0"))
    assert done.stdout == "/opt/hpo/bin/python3: No module named pip\n"


def test_the_images_user_cannot_change_it() -> None:
    look = "for folder in / /etc /opt/hpo/bin /usr/local/bin; do touch $folder/mine && echo $folder; done 2>/dev/null"
    assert in_image("sh", "-c", look).stdout == ""


def test_the_image_is_of_the_size_that_a_torch_for_cpus_has(described: dict[str, Any]) -> None:
    assert described["Size"] / 2**20 < LARGEST_MIB
    assert in_image("python3", "-c", "import torch; print(torch.version.cuda)").stdout == "None\n"


def test_packages_are_those_of_the_constraints() -> None:
    script = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()), sep='\\n')"
    there = {line.lower().replace("_", "-").split("+")[0] for line in in_image("python3", "-c", script).stdout.split()}
    pinned = {line.lower().replace("_", "-") for line in (REPOSITORY / "constraints.txt").read_text().split()}
    assert there - pinned == {"incident-hpo==0.1.0"}


def test_neither_history_nor_settings_hold_what_the_build_was_given(described: dict[str, Any]) -> None:
    words = json.dumps([described["History"], described["Config"]])
    assert "COPY" in words
    assert not [word for word in ("PIP_", "pip.conf", "wheels", "index-url", "password", "secret") if word in words]
    assert in_image("sh", "-c", "cat /etc/pip.conf /etc/xdg/pip/* /opt/wheels/*").stdout.count("No such file") == 2


def test_only_what_the_image_is_made_of_reaches_the_builder(tmp_path: Path) -> None:
    for path in ("secrets/postgres_password", ".git/config", ".env", "studies/incidents.csv", "hpo/__pycache__/a.pyc"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("Kanarienvogel")
    (tmp_path / "hpo/cli.py").write_text("")
    shutil.copy(REPOSITORY / ".dockerignore", tmp_path)
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nCOPY . /tmp/context\nRUN find /tmp/context -type f\n")
    options = ["--pull-never", "--isolation=chroot", f"--tag={CONTEXT}"]
    done = run(["buildah", "build", *options, str(tmp_path)], dict(os.environ))
    run(["buildah", "rmi", CONTEXT], dict(os.environ))
    check(done)
    assert [line for line in done.stdout.splitlines() if line.startswith("/tmp/context")] == ["/tmp/context/hpo/cli.py"]


def test_a_search_runs_in_the_image_without_any_network(tmp_path: Path) -> None:
    """With its own server, on a root file system that is read-only."""
    study = tmp_path / "study.yaml"
    study.write_text(STUDY)
    options = ("--network=none", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", f"--volume={study}:/study.yaml:ro")
    check(in_image("sh", "-c", f"cp /study.yaml . && {DEMO} && cat results/best.yaml", options=("--rm", *options)))


def test_the_compose_files_limits_hold_in_its_containers(stack: Stack) -> None:
    command = container(stack, "worker", "-c", LOOK)
    command.insert(command.index(IMAGE), "--entrypoint=sh")
    lines = run(command, dict(os.environ)).stdout.split("\n")
    assert lines[0] == "touch: cannot touch '/mine': Read-only file system"
    assert [line.split() for line in lines[1:5]] == [
        ["/tmp"],
        ["/var/lib/hpo"],
        ["CapBnd:", "0" * 16],
        ["NoNewPrivs:", "1"],
    ]


def test_migrating_twice_makes_roles_once(migrated: Stack) -> None:
    assert "roles made: none" in in_container(migrated, "migrate").stdout


def test_a_worker_finds_its_box_fit(searched: Stack) -> None:
    done = in_container(searched, "worker", "doctor", "small")
    assert done.returncode == 0, done.stdout


def test_a_study_of_the_host_is_searched_and_exported_for_a_user_of_the_host(searched: Stack) -> None:
    results = searched.folder / "results"
    os.chown(results, 12345, 12345)
    check(in_container(searched, "hpo", "export", "small", "-o", "/results/best.yaml", user="12345:12345"))
    assert YAML(typ="safe").load((results / "best.yaml").read_text())["schema_version"]
    assert (results / "best.yaml").stat().st_uid == 12345


def test_launching_on_a_finished_study_ends_well(searched: Stack) -> None:
    command = [word.replace("${STUDY:-demo}", "small") for word in searched.services["worker"]["command"]]
    check(in_container(searched, "worker", *command))


def test_a_stopped_worker_gives_its_trial_back_in_time(searched: Stack) -> None:
    endless = STUDY.replace("name: small", "name: endless").replace("trials: 3", "trials: 1000")
    (searched.folder / "studies/endless.yaml").write_text(endless)
    check(in_container(searched, "hpo", "create", "/studies/endless.yaml"))
    name = f"{searched.folder.name}-worker"
    with start(container(searched, "worker", "worker", "endless", name=name)) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "trial" in line)
        stopping = time.monotonic()
        check(run([*PODMAN, "stop", "--time=30", name], dict(os.environ)))
        took_s = time.monotonic() - stopping
        words = line + process.stdout.read()
    code = run([*PODMAN, "inspect", "--format={{.State.ExitCode}}", name], dict(os.environ)).stdout.strip()
    run([*PODMAN, "rm", "--force", "--volumes", name], dict(os.environ))
    assert code == "75", words
    assert took_s < 20


def test_the_dashboard_serves_by_its_own_check(searched: Stack) -> None:
    name, port = f"{searched.folder.name}-dashboard", str(searched.dashboard_port)
    command = searched.services["dashboard"]["command"]
    probe = [word.replace("8080", port) for word in searched.services["dashboard"]["healthcheck"]["test"][1:]]
    with start(container(searched, "dashboard", *command, f"--port={port}", name=name)) as process:
        deadline = time.monotonic() + 60
        while run([*PODMAN, "exec", name, *probe], dict(os.environ)).returncode != 0:
            assert process.poll() is None
            assert time.monotonic() < deadline
        check(run([*PODMAN, "stop", "--time=30", name], dict(os.environ)))
    run([*PODMAN, "rm", "--force", "--volumes", name], dict(os.environ))
