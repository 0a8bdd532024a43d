"""The services of docker-compose.yml as plain processes: commands, environment and mounted files come from the file.

Where a container would see a path, its process here sees a place in one folder; the host `postgres` is this machine.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY
from tests.servers import USER, free_port, give_away, program, running

IMAGE_HOME = "/var/lib/hpo"  # of the Dockerfile
TIMEOUT_S = 240
Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Stack:
    """`folder` holds the compose file and what lies beside it, and may be entered by the database's user."""

    folder: Path
    port: int
    dashboard_port: int

    @cached_property
    def services(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((self.folder / "docker-compose.yml").read_text())["services"]
        return found

    def place(self, service: str, path: str) -> Path:
        """Where a path of its container lies here."""
        return Path(self.localised(service, path))

    def localised(self, service: str, text: str) -> str:
        places = self._places(service)
        longest_first = sorted(places, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first))
        text = re.sub(rf"(?<![\w/])({pattern})(?![\w-])", lambda found: str(places[found[0]]), text)
        return self.with_database_here(text)

    def with_database_here(self, text: str) -> str:
        """In a URL: the server's name stays, as its certificate has it."""
        return re.sub(r"@postgres/(\w+)\?", rf"@postgres:{self.port}/\1?hostaddr=127.0.0.1&", text)

    def command(self, service: str, key: str = "command") -> list[str]:
        return [self.localised(service, word) for word in self.services[service][key]]

    def environment(self, service: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HPO_", "PG"))}
        given = {name: self.localised(service, value) for name, value in self.services[service]["environment"].items()}
        home = self.place(service, IMAGE_HOME)
        home.mkdir(parents=True, exist_ok=True)
        return inherited | {"HPO_HOME": str(home)} | given

    def _places(self, service: str) -> dict[str, Path]:
        """By path in the container."""
        given = self.services[service]
        places = {target: self.folder / "tmpfs" / service for target in given["tmpfs"] if target != "/tmp"}
        places["/run/secrets"] = self.folder / "mounted" / service / "secrets"
        places[IMAGE_HOME] = self.folder / "volumes" / f"anonymous-{service}"
        for volume in given.get("volumes", []):
            source, target = volume.split(":")[:2]
            local = self.folder / source if source.startswith("./") else self.folder / "volumes" / source
            places[target] = self.folder / "mounted" / service / local.name if local.is_file() else local
        return places

    def mount(self) -> None:
        """Copies what a container sees as single files, with their modes; paths in them become those of here."""
        for service, given in self.services.items():
            places = self._places(service)
            places["/run/secrets"].mkdir(parents=True, exist_ok=True)
            for name in given.get("secrets", []):
                shutil.copy2(self.folder / "secrets" / name, places["/run/secrets"])
            for volume in given.get("volumes", []):
                source, target = volume.split(":")[:2]
                if (file := self.folder / source).is_file():
                    places[target].write_text(self.localised(service, file.read_text()))
                    places[target].chmod(file.stat().st_mode)
                else:
                    places[target].mkdir(parents=True, exist_ok=True)

    def hpo(self, service: str, *arguments: str, **changed: str) -> Done:
        """Its command, or another one: `docker compose run service arguments`."""
        command = [self.localised(service, word) for word in arguments] or self.command(service)
        return run([sys.executable, "-m", "hpo", *command], self.environment(service) | changed)

    def make_certificates(self) -> Done:
        give_away(self.folder / "volumes/tls")
        return run(self.command("certs", "entrypoint"), as_server=True)

    def server_environment(self) -> dict[str, str]:
        """Of what runs in the database's container."""
        programs = f"{Path(program('psql')).parent}:{os.environ['PATH']}"
        sockets = {"PGHOST": str(self.place("postgres", "/run/postgresql")), "PGPORT": str(self.port)}
        return self.environment("postgres") | sockets | {"PATH": programs}

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The database, made first as the image's entry point makes it: its temporary server has no TCP."""
        environment = self.server_environment()
        data, sockets = self.place("postgres", "/var/lib/postgresql/data"), Path(environment["PGHOST"])
        sockets.mkdir(parents=True)
        data.chmod(0o700)
        give_away(data, sockets)
        password = environment["POSTGRES_PASSWORD_FILE"]
        options = [*shlex.split(environment["POSTGRES_INITDB_ARGS"]), "--username=postgres", f"--pwfile={password}"]
        check(run([program("initdb"), "-D", str(data), *options, "--no-sync"], as_server=True))
        # These three are of this machine, not of the files.
        here = [f"-cport={self.port}", f"-cunix_socket_directories={sockets}", "-cfsync=off", "-clisten_addresses="]
        command = [*self.command("postgres")[1:], *here]
        control = [program("pg_ctl"), "-D", str(data), "-w", "-l", str(data / "first.log")]
        check(run([*control, "start", "-o", shlex.join(command)], environment, as_server=True))
        first = {"POSTGRES_USER": "postgres", "PGPASSWORD": Path(password).read_text().strip()}
        script = self.place("postgres", "/docker-entrypoint-initdb.d/owner.sh")
        check(run([str(script)], environment | first, as_server=True))
        check(run([*control, "stop"], as_server=True))
        with running([program("postgres"), "-D", str(data), *command[:-1], "-clisten_addresses=127.0.0.1"], self.port):
            yield

    @contextmanager
    def dashboard(self) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "hpo", *self.command("dashboard"), f"--port={self.dashboard_port}"]
        with subprocess.Popen(command, env=self.environment("dashboard"), cwd=self.folder, text=True) as process:
            yield process
            process.terminate()


def new_stack(folder: Path) -> Stack:
    """From the repository's files, nothing else."""
    shutil.copy2(REPOSITORY / "docker-compose.yml", folder)
    shutil.copytree(REPOSITORY / "deploy", folder / "deploy")
    stack = Stack(folder, free_port(), free_port())
    check(make_secrets(stack))
    stack.mount()
    return stack


def make_secrets(stack: Stack, *arguments: str) -> Done:
    """deploy/secrets.sh with the hpo of here, and a password for the dashboard's user."""
    environment = dict(os.environ) | {"HPO": str(Path(sys.executable).parent / "hpo")}
    command = ["sh", str(stack.folder / "deploy/secrets.sh"), *arguments]
    return run(command, environment, said="a password for the test\n")


def run(
    command: list[str], environment: dict[str, str] | None = None, *, as_server: bool = False, said: str = ""
) -> Done:
    user = pwd.getpwnam(USER) if as_server and os.getuid() == 0 else None
    return subprocess.run(
        command,
        env=environment,
        user=user and user.pw_uid,
        group=user and user.pw_gid,
        extra_groups=[] if user else None,
        cwd="/",
        input=said,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def check(done: Done) -> None:
    assert done.returncode == 0, f"{done.args}: {done.stdout}"
