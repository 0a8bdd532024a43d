"""Services of docker-compose.yml as real containers, under its limits; the database is a process outside."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TEST_ALL
from tests.deploy.stack import Done, Stack, run

IMAGE = "localhost/incident-hpo:0.1.0"  # deploy/build-without-engine.sh makes it
PODMAN = ["podman", "--runtime", "runc"]
# What podman would raise by itself, and may not on every machine.
ULIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]
BARE = ["run", "--pull=never", "--no-healthcheck", "--read-only-tmpfs=false", *ULIMITS]


def image() -> str:
    """Its name; where nothing can run it or nobody made it the test is skipped, under HPO_TEST_ALL=1 it fails."""
    try:
        if run([*PODMAN, "image", "exists", IMAGE], dict(os.environ)).returncode == 0:
            return IMAGE
        missing = f"no image {IMAGE}: make image"
    except FileNotFoundError:
        missing = "no podman: apt-get install buildah debootstrap podman runc catatonit"
    if TEST_ALL:
        pytest.fail(missing)
    pytest.skip(missing)


def in_image(*arguments: str, options: tuple[str, ...] = ("--network=none",)) -> Done:
    """A program of the image, as its own user."""
    program, *rest = arguments
    return run([*PODMAN, *BARE, "--rm", *options, f"--entrypoint={program}", image(), *rest], dict(os.environ))


def container(stack: Stack, service: str, *arguments: str, name: str = "", user: str = "") -> list[str]:
    """`docker compose run service arguments`; a named one is not removed at its end, which then can be looked at."""
    given = stack.services[service]
    options = [f"--name={name}"] if name else ["--rm"]
    options += ["--network=host", f"--user={user or given['user']}", *_limits(given)]
    options += [f"--env={name}={stack.with_database_here(value)}" for name, value in given["environment"].items()]
    options += [f"--volume={source}:{target}" for source, target in _mounts(stack, given)]
    return [*PODMAN, *BARE, *options, image(), *(arguments or given["command"])]


def _limits(given: dict[str, Any]) -> list[str]:
    options = ["--read-only"] if given["read_only"] else []
    options += ["--init"] if given["init"] else []
    options += [f"--tmpfs={path}" for path in given["tmpfs"]]
    options += [f"--cap-drop={name}" for name in given["cap_drop"]]
    options += [f"--security-opt={option.removesuffix(':true')}" for option in given["security_opt"]]
    options += [f"--memory={given['mem_limit']}", f"--pids-limit={given['pids_limit']}"]
    return options + ([f"--shm-size={given['shm_size']}"] if "shm_size" in given else [])


def _mounts(stack: Stack, given: dict[str, Any]) -> list[tuple[str | Path, str]]:
    """Of named volumes, the one with certificates is shared with the database outside."""
    secrets = [(stack.folder / "secrets" / name, f"/run/secrets/{name}:ro") for name in given["secrets"]]
    mounts: list[tuple[str | Path, str]] = [*secrets]
    for volume in given["volumes"]:
        source, target = volume.split(":", 1)
        if source.startswith("./"):
            mounts.append((stack.folder / source, target))
        else:
            mounts.append(
                (stack.folder / "volumes" / source if source == "tls" else volume_name(stack, source), target)
            )
    return mounts


def volume_name(stack: Stack, name: str) -> str:
    return f"{stack.folder.name}-{name}"


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
