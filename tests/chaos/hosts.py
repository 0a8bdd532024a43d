"""Hosts that share nothing but a wire: namespaces at one switch, PostgreSQL with a password on the first of them."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest
from sqlalchemy import make_url

from storage import embedded
from tests.chaos.crew import query
from tests.conftest import TEST_ALL

SUBNET = "10.77.0"  # nobody else is in these namespaces
DATABASE_HOST, SWITCH = "database", "switch"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_SERVER = "import sys; from pathlib import Path; from storage import embedded; embedded.start(Path(sys.argv[1]))"
NAMED = 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"'  # a program, on a host of that name
WAIT_S = 60.0


class Hosts:
    """`database` reaches the server past the network, as its superuser; hosts reach it as `hpo`, by password."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder, self.names = folder, names
        self.password = secrets.token_hex(12)
        self.database = make_url(embedded.url(folder))
        self._started: list[subprocess.Popen[bytes]] = []

    def namespace(self, host: str) -> str:
        return f"{self.folder.name}-{host}"

    def home(self, host: str) -> Path:
        return self.folder / host

    def log(self, host: str) -> str:
        return (self.home(host) / "log").read_text()

    def start(self, host: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """`hpo ...` on a host that has nothing but where the database is, and the password's file."""
        home = self.home(host)
        home.mkdir(exist_ok=True)
        password_file = home / "pgpass"
        password_file.touch(mode=0o600)
        password_file.write_text(f"*:*:*:*:{self.password}\n")
        given = {"PATH": PATH, "HOME": str(home), "HPO_HOME": str(home / "hpo"), "PGPASSFILE": str(password_file)}
        given["HPO_STORAGE"] = f"postgresql://hpo@{SUBNET}.1/{embedded.DATABASE}"
        program = ["unshare", "--uts", "sh", "-c", NAMED, host, sys.executable, "-m", "hpo", *arguments]
        with (home / "log").open("ab") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace(host), *program],
                env=given | environment,
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def processes(self, host: str) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.namespace(host)).split()]

    @contextmanager
    def unplugged(self, host: str) -> Iterator[None]:
        """Its own link is down, and it knows: every new connection fails at once."""
        device = ("-n", self.namespace(host), "link", "set", "eth0")
        ip(*device, "down")
        try:
            yield
        finally:
            ip(*device, "up")

    @contextmanager
    def swallowed(self, host: str) -> Iterator[None]:
        """The switch forwards nothing from or to it; its link is up, and nobody is told."""
        port = ("-n", self.namespace(SWITCH), "link", "set", host)
        ip(*port, "nomaster")
        try:
            yield
        finally:
            ip(*port, "master", "bridge")

    @contextmanager
    def frozen(self, host: str) -> Iterator[None]:
        """All that runs there stands still, as when a virtual machine is moved."""
        stopped = self.processes(host)
        for pid in stopped:
            os.kill(pid, SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                os.kill(pid, SIGCONT)

    def close(self) -> None:
        for process in self._started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, SIGKILL)
            process.wait()
        for host in self.names:
            for pid in self.processes(host):  # trainers, which are in sessions of their own
                with suppress(ProcessLookupError):
                    os.kill(pid, SIGKILL)


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def wait_until(holds: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def hosts(*names: str) -> Iterator[Hosts]:
    """Nothing of them is left, whatever happens within; without the right to make them the test is skipped."""
    _need_namespaces()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="hpo-hosts-"))
        stack.callback(shutil.rmtree, folder)
        folder.chmod(0o755)  # the server runs as another user
        made = Hosts(folder, names)
        for host in (SWITCH, DATABASE_HOST, *names):
            ip("netns", "add", made.namespace(host))
            stack.callback(ip, "netns", "delete", made.namespace(host))
        _wire(made)
        stack.callback(embedded.stop, folder)
        _start_server(made)
        stack.callback(made.close)
        yield made


def _need_namespaces() -> None:
    """Under HPO_TEST_ALL=1 the test fails without them."""
    missing = "no iproute2" if shutil.which("ip", path=PATH) is None else ""
    name = f"hpo-probe-{os.getpid()}"
    if not missing:
        done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
        missing = f"no right to make network namespaces ({done.stderr.strip()})" if done.returncode else ""
    if missing:
        pytest.fail(missing) if TEST_ALL else pytest.skip(missing)
    ip("netns", "delete", name)


def _wire(made: Hosts) -> None:
    switch = made.namespace(SWITCH)
    ip("-n", switch, "link", "add", "bridge", "up", "type", "bridge")
    for number, host in enumerate((DATABASE_HOST, *made.names), start=1):
        own = ("-n", made.namespace(host))
        ip("-n", switch, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", made.namespace(host))
        ip("-n", switch, "link", "set", host, "up", "master", "bridge")
        ip(*own, "address", "add", f"{SUBNET}.{number}/24", "dev", "eth0")
        ip(*own, "link", "set", "eth0", "up")
        ip(*own, "link", "set", "lo", "up")


def _start_server(made: Hosts) -> None:
    embedded.start(made.folder)
    query(made.database, "CREATE ROLE hpo LOGIN PASSWORD %s", made.password)
    query(made.database, f"ALTER DATABASE {embedded.DATABASE} OWNER TO hpo")
    query(made.database, f"ALTER SYSTEM SET listen_addresses = '{SUBNET}.1'")
    query(made.database, "ALTER SYSTEM SET fsync = off")  # what a test wrote need not outlive a power cut
    embedded.stop(made.folder)
    with (embedded._place(made.folder).data / "pg_hba.conf").open("a") as rules:
        rules.write(f"host {embedded.DATABASE} hpo {SUBNET}.0/24 scram-sha-256\n")
    own = ["ip", "netns", "exec", made.namespace(DATABASE_HOST)]
    subprocess.run([*own, sys.executable, "-c", START_SERVER, str(made.folder)], check=True)
