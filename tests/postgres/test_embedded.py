"""The embedded PostgreSQL, with real servers in homes of their own under /tmp."""

import contextlib
import ctypes
import fcntl
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy

from storage import embedded
from storage.connection import Connection

ROOT = Path(__file__).parents[2]
START = """
import pathlib, sys, time
from storage import embedded
home = pathlib.Path(sys.argv[1])
url = embedded.start(home)
"""
PRINT = "print(url, flush=True)\n"
WAIT = "time.sleep(600)\n"
START_TWICE_AND_STOP = (
    START
    + """
same, owner = embedded.start(home) == url, (home / "postgresql" / "data").stat().st_uid
before = embedded.running(home)
print(str([same, before, owner, embedded.stop(home), embedded.running(home)]).lower())
"""
)
SYSTEM_PYTHON = f"/usr/bin/python3.{sys.version_info.minor}"
AS_ROOT = os.getuid() == 0


@contextlib.contextmanager
def new_home(name: str = "home") -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="hpo-test-", dir="/tmp"))
    folder.chmod(0o755)
    home = folder / name
    try:
        yield home
    finally:
        embedded.stop(home)
        for made in (sockets(home), base(home), folder):
            shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def fresh_home() -> Iterator[Path]:
    with new_home() as home:
        yield home


@pytest.fixture(scope="module")
def used_home() -> Iterator[Path]:
    with new_home() as home:
        embedded.start(home)
        embedded.stop(home)
        yield home


@pytest.fixture
def home(used_home: Path) -> Iterator[Path]:
    """A home that had a server before; to spare an initdb for each test."""
    yield used_home
    embedded.stop(used_home)


@pytest.fixture
def long_home() -> Iterator[Path]:
    with new_home("long" * 30) as home:
        yield home


def sockets(home: Path) -> Path:
    return Path(str(sqlalchemy.make_url(embedded.url(home)).query["host"]))


def base(home: Path) -> Path:
    """The directory of the server's files: it holds the socket directory too, unless the path is too long."""
    return sockets(home).parent if sockets(home).name == "socket" else home / "postgresql"


def postmaster(home: Path) -> psutil.Process:
    return psutil.Process(int((base(home) / "data" / "postmaster.pid").read_text().split()[0]))


def ask(url: str, statement: str) -> object:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        result = connection.execute(sqlalchemy.text(statement))
        return result.scalar() if result.returns_rows else None


def starter(home: Path, more: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", START + PRINT + more, str(home)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)


def wait_until(process: psutil.Process, status: str) -> None:
    deadline = time.monotonic() + 10
    while process.status() != status:
        assert time.monotonic() < deadline, f"{process} is not {status}"
        time.sleep(0.01)


def wait_until_gone(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        wait_until(process, psutil.STATUS_ZOMBIE)


def kill_postmaster_with_a_child_paused(home: Path) -> psutil.Process:
    """A paused child cannot notice that its postmaster is gone, and keeps the shared memory in use."""
    leader = postmaster(home)
    statement = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
    child = psutil.Process(int(str(ask(embedded.url(home), statement))))
    child.suspend()
    wait_until(child, psutil.STATUS_STOPPED)
    leader.kill()
    wait_until_gone(leader)
    return child


def test_port_of_the_environment_leads_nobody_astray(
    server_url: sqlalchemy.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "5433")
    assert Connection(server_url).run("SELECT 1") == [(1,)]
    assert ask(server_url.render_as_string(hide_password=False), "SELECT 1") == 1


def test_first_start_makes_a_server_that_the_second_start_finds(fresh_home: Path) -> None:
    assert not embedded.running(fresh_home)
    url = embedded.start(fresh_home)
    first = postmaster(fresh_home)
    assert embedded.start(fresh_home) == url == embedded.url(fresh_home)
    assert postmaster(fresh_home) == first
    assert embedded.running(fresh_home)


def test_server_listens_on_its_private_socket_alone_with_fixed_settings(home: Path) -> None:
    url = embedded.start(home)
    assert (sockets(home) / ".s.PGSQL.5432").is_socket()
    assert sockets(home).stat().st_mode & 0o777 == 0o700
    names = ("listen_addresses", "timezone", "server_encoding", "max_connections")
    assert [ask(url, f"SHOW {name}") for name in names] == ["", "UTC", "UTF8", "300"]
    assert ask(url, "SELECT datcollate FROM pg_database WHERE datname = 'hpo'") == "C"


def test_server_survives_kill_9_of_its_starter_and_holds_nothing_of_it(home: Path) -> None:
    with starter(home, WAIT) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        first = postmaster(home)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.stdout.read() == ""  # would block if the server had inherited the pipe
    with open(base(home) / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # would raise if the server had inherited it
    assert embedded.start(home) == url
    assert postmaster(home) == first


def test_eight_processes_starting_at_once_share_one_server(fresh_home: Path) -> None:
    starters = [starter(fresh_home) for _ in range(8)]
    urls = {process.communicate()[0].strip() for process in starters}
    assert [process.returncode for process in starters] == [0] * 8
    assert urls == {embedded.url(fresh_home)}
    assert ask(urls.pop(), "SELECT 1") == 1
    data = str(base(fresh_home) / "data")
    leaders = [each for each in psutil.process_iter(["cmdline"]) if data in (each.info["cmdline"] or [])]
    assert leaders == [postmaster(fresh_home)]


def test_start_after_kill_9_of_the_postmaster_keeps_what_was_committed(home: Path) -> None:
    url = embedded.start(home)
    ask(url, "CREATE TABLE kept AS SELECT 7 AS value")
    postmaster(home).kill()
    assert ask(embedded.start(home), "SELECT value FROM kept") == 7


def test_start_works_while_the_killed_postmaster_is_a_zombie(home: Path) -> None:
    libc = ctypes.CDLL(None)
    assert libc.prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER: the server's end is ours to collect
    try:
        embedded.start(home)
        killed = postmaster(home)
        killed.kill()
        wait_until_gone(killed)
        embedded.start(home)
        assert killed.status() == psutil.STATUS_ZOMBIE
        assert postmaster(home) != killed
    finally:
        libc.prctl(36, 0, 0, 0, 0)
        os.waitpid(killed.pid, 0)


def test_start_ends_the_children_of_a_killed_postmaster(home: Path) -> None:
    embedded.start(home)
    child = kill_postmaster_with_a_child_paused(home)
    assert ask(embedded.start(home), "SELECT 1") == 1
    wait_until_gone(child)


def test_stop_ends_the_children_of_a_killed_postmaster(home: Path) -> None:
    embedded.start(home)
    child = kill_postmaster_with_a_child_paused(home)
    assert embedded.stop(home)
    wait_until_gone(child)


def test_stop_without_a_server_is_harmless(home: Path) -> None:
    assert not embedded.stop(home / "never made")
    assert not embedded.stop(home)
    embedded.start(home)
    assert embedded.stop(home)
    assert not embedded.stop(home)
    assert not embedded.running(home)


def test_stop_stops_a_paused_server(home: Path) -> None:
    embedded.start(home)
    leader = postmaster(home)
    for process in (leader, *leader.children()):
        with contextlib.suppress(psutil.NoSuchProcess):  # the process of a connection closed just now
            process.suspend()
    assert not embedded.running(home)
    assert embedded.stop(home)
    wait_until_gone(leader)
    assert not (base(home) / "data" / "postmaster.pid").exists()  # it stopped in good order


def test_stop_stops_a_server_in_the_middle_of_a_transaction(home: Path) -> None:
    engine = sqlalchemy.create_engine(embedded.start(home))
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE unfinished (value int)"))
        leader = postmaster(home)
        assert embedded.stop(home)
        connection.invalidate()
    wait_until_gone(leader)


def test_pid_file_that_names_an_innocent_process_gets_nobody_killed(home: Path) -> None:
    embedded.start(home)
    files = [base(home) / "data" / "postmaster.pid", sockets(home) / ".s.PGSQL.5432.lock"]
    texts = [file.read_text() for file in files]
    number = str(postmaster(home).pid)
    embedded.stop(home)
    owner = (base(home) / "data").stat().st_uid if AS_ROOT else None  # whose pids PostgreSQL believes
    with subprocess.Popen(["sleep", "600"], user=owner) as innocent:
        for file, text in zip(files, texts, strict=True):
            file.write_text(text.replace(number, str(innocent.pid), 1))
        assert not embedded.stop(home)
        assert ask(embedded.start(home), "SELECT 1") == 1
        assert embedded.stop(home)
        assert innocent.poll() is None
        innocent.kill()


def test_start_works_after_an_interrupted_initdb(fresh_home: Path) -> None:
    with starter(fresh_home) as process:
        while not list(fresh_home.glob("postgresql/data.*/PG_VERSION")):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
    assert not (fresh_home / "postgresql" / "data").exists()
    assert ask(embedded.start(fresh_home), "SELECT 1") == 1


def test_long_home_has_its_socket_in_a_short_private_directory(long_home: Path) -> None:
    assert ask(embedded.start(long_home), "SELECT 1") == 1
    assert len(str(sockets(long_home) / ".s.PGSQL.5432")) <= 107
    assert sockets(long_home).stat().st_mode & 0o777 == 0o700


def test_socket_directory_that_others_can_use_is_refused(long_home: Path) -> None:
    sockets(long_home).mkdir()
    sockets(long_home).chmod(0o755)
    with pytest.raises(embedded.ServerError, match="directory of ours"):
        embedded.start(long_home)


def test_link_in_place_of_the_socket_directory_is_refused(home: Path, long_home: Path) -> None:
    embedded.start(home)
    sockets(long_home).symlink_to(sockets(home))
    with pytest.raises(embedded.ServerError, match="directory of ours"):
        embedded.start(long_home)
    sockets(long_home).unlink()


def test_server_below_a_closed_directory_works_and_changes_no_mode(fresh_home: Path) -> None:
    fresh_home.parent.chmod(0o700)
    foreign = {*fresh_home.parents, *Path(embedded.__file__).parents, *Path(sys.executable).parents}
    foreign |= {*Path(sys.executable).resolve().parents, *embedded.SYSTEM_HOME.parents}
    before = {path: path.stat().st_mode for path in foreign}
    expected = embedded.url(fresh_home)
    assert embedded.start(fresh_home) == expected == embedded.url(fresh_home)
    assert ask(expected, "SELECT 1") == 1
    assert {path: path.stat().st_mode for path in foreign} == before
    assert (base(fresh_home).parent == embedded.SYSTEM_HOME) == AS_ROOT
    assert (postmaster(fresh_home).username() == embedded.USER) == AS_ROOT


def python_of_nobody(folder: Path) -> tuple[str, dict[str, Any]]:
    """A Python that the user nobody may run, and how; what it imports is copied into `folder`."""
    user = pwd.getpwnam("nobody")
    site, packages = Path(sysconfig.get_path("platlib")), folder / "packages"
    names = ["psycopg2", "psycopg2_binary.libs", "psutil", "platformdirs", embedded.PACKAGE]
    for source in (*(site / name for name in names), site / f"{embedded.PACKAGE}.libs", ROOT / "storage"):
        ignore = shutil.ignore_patterns("pginstall18", "__pycache__")
        shutil.copytree(source, packages / source.name, ignore=ignore)
    subprocess.run(["chmod", "-R", "a+rX", packages], check=True)
    options: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/"}
    options["env"] = {"PYTHONPATH": str(packages)}
    for python in (sys.executable, SYSTEM_PYTHON):
        with contextlib.suppress(OSError):
            if subprocess.run([python, "-c", "import psycopg2"], check=False, **options).returncode == 0:
                return python, options
    pytest.fail(f"the user nobody may not run {sys.executable}; install {SYSTEM_PYTHON}")


def test_ordinary_user_has_a_server_of_their_own(fresh_home: Path) -> None:
    here: tuple[str, dict[str, Any]] = (sys.executable, {"cwd": ROOT})
    python, options = python_of_nobody(fresh_home.parent) if AS_ROOT else here
    user = int(options.get("user", os.getuid()))
    fresh_home.mkdir()
    os.chown(fresh_home, user, -1)
    command = [python, "-c", START_TWICE_AND_STOP, str(fresh_home)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, **options).stdout
    assert json.loads(output) == [True, True, user, True, False]
