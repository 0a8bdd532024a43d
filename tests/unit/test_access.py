"""The access file of the dashboard and the command that writes it; sessions and tries that it counts."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
import sys
from pathlib import Path

import argon2
import pytest

from hpo.access import Access, read_access, refuse_useless
from hpo.errors import InputError
from hpo.sessions import SESSION_S, SESSIONS, SLOTS, TRIES, TRY_S, Passwords, Sessions, Throttle, network_of

REPOSITORY = Path(__file__).parents[2]
PASSWORD = "correct horse battery"
HASHED = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
COMMENTED = f"""# who may see the searches
users:
  ben: {{password: '{HASHED}'}}   # since May
hosts: [hpo.example.com]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.yaml"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the time is, in seconds: [0] may be set."""
    now = [1000.0]
    monkeypatch.setattr("hpo.sessions.time.monotonic", lambda: now[0])
    return now


def user(path: Path, *arguments: str, typed: str = f"{PASSWORD}\n") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpo", "dashboard-user", *arguments, "-f", str(path)]
    return subprocess.run(
        command, cwd=REPOSITORY, input=typed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def right(path: Path, name: str) -> tuple[bool | None, bool]:
    """Whether PASSWORD is the user's, and whether it may write."""
    access = read_access(path)
    return Passwords(access.users).is_right(name, PASSWORD), access.users[name].write


def test_file_says_who_may_what(path: Path) -> None:
    path.write_text(
        f"users:\n  anna: {{password: '{HASHED}', write: true}}\n  carla: {{}}\n"
        "proxy: {header: X-Remote-User, addresses: [10.0.0.5, '::0:1']}\nhosts: [hpo.example.com]\n"
    )
    access = read_access(path)
    refuse_useless(access, path)
    assert {name: user.write for name, user in access.users.items()} == {"anna": True, "carla": False}
    assert access.proxy is not None
    assert (access.proxy.header, access.proxy.addresses) == ("X-Remote-User", ("10.0.0.5", "::1"))
    assert access.hosts == ("hpo.example.com",)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("users:\n  anna: {pasword: x}\n", 2, "unknown key 'users.anna.pasword'"),
        ("users:\n  anna: {write: 'yes'}\n", 2, "users.anna.write"),
        ("users:\n  an na: {}\n", 2, "'an na' cannot be the name of a user"),
        ("users:\n  anna: {}\n  anna: {}\n", 3, "duplicate key"),
        ("users: {}\nproxi: {}\n", 2, "unknown key 'proxi'"),
        ("proxy: {header: X-User}\n", 1, "'proxy.addresses' is missing"),
        ("proxy:\n  header: X-User\n  addresses: []\n", 3, "at least 1 expected"),
        (
            "proxy:\n  header: X-User\n  addresses: [proxy.example.com]\n",
            3,
            "does not appear to be an IPv4 or IPv6 address",
        ),
        ("proxy: {header: 'X-User: me', addresses: [10.0.0.5]}\n", 1, "proxy.header"),
        ("hosts: ['https://hpo.example.com']\n", 1, "hosts"),
        ("- anna\n", 1, "expected a mapping"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_its_line(path: Path, text: str, line: int, words: str) -> None:
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        read_access(path)
    assert str(raised.value).startswith(f"{path}:{line}: ")
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "users:\n  anna: hunter2\n",
        "users:\n  anna: {password: hunter2}\n",
        "users:\n  anna: [hunter2]\n",
        "users:\n  anna: {password: [hunter2]}\n",
        "users:\n  anna: {password: {is: hunter2}}\n",
        "users:\n  anna: {password: '$argon2id$hunter2'}\n",
        "users:\n  anna: {password: '$2b$12$hunter2'}\n",
    ],
)
def test_password_in_place_of_its_hash_is_refused_and_not_repeated(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        read_access(path)
    assert str(raised.value).startswith(f"{path}:2: users.anna")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hosts: []\n", "nobody could log in"),
        ("users: {}\nproxy: {addresses: [10.0.0.5]}\n", "nobody could log in"),
        ("users:\n  anna: {write: true}\n", "anna has no password, and no proxy says who it is"),
    ],
)
def test_file_that_lets_nobody_in_is_refused(path: Path, text: str, words: str) -> None:
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        refuse_useless(read_access(path), path)


def test_command_makes_a_file_for_its_owner_alone(path: Path) -> None:
    made = user(path, "anna", "--write")
    assert (made.returncode, made.stdout) == (0, f"anna may read and write: {path}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert PASSWORD not in path.read_text()
    assert right(path, "anna") == (True, True)
    assert list(path.parent.iterdir()) == [path]


def test_command_changes_one_user_and_leaves_all_else(path: Path) -> None:
    path.write_text(COMMENTED)
    path.chmod(0o644)
    assert user(path, "anna").returncode == 0
    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert all(line in text.splitlines() for line in COMMENTED.splitlines())
    assert (right(path, "ben"), right(path, "anna")) == ((True, False), (True, False))


def test_right_to_write_stays_until_it_is_given_or_taken(path: Path) -> None:
    for arguments, may_write in (((), False), (("--write",), True), ((), True), (("--no-write",), False)):
        typed = f"{PASSWORD} {may_write}\n"
        assert user(path, "anna", *arguments, typed=typed).returncode == 0
        assert right(path, "anna") == (False, may_write)
        assert Passwords(read_access(path).users).is_right("anna", typed.strip()) is True


@pytest.mark.parametrize(
    ("name", "text", "typed", "words"),
    [
        ("anna", "users: {ben: {write: maybe}}\n", None, "users.ben.write"),
        ("anna", "users: [\n", None, "access.yaml:2"),
        ("anna", "", None, "expected a mapping"),
        ("anna", COMMENTED, "short\n", "a password has 8 to 1024 characters, this one has 5"),
        ("anna", COMMENTED, "", "this one has 0"),
        ("anna", COMMENTED, "x" * 1025, "this one has 1025"),
        ("an na", COMMENTED, None, "cannot be the name of a user"),
        ("anna,ben", COMMENTED, None, "cannot be the name of a user"),
    ],
)
def test_what_cannot_be_leaves_the_file_as_it_was(
    path: Path, name: str, text: str, typed: str | None, words: str
) -> None:
    path.write_text(text)
    refused = user(path, name, typed=f"{PASSWORD}\n" if typed is None else typed)
    assert refused.returncode == 2, refused.stdout
    assert words in refused.stdout
    assert refused.stdout.count("\n") == 1
    assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused = user(tmp_path / "file" / "access.yaml", "anna")
    assert (refused.returncode, refused.stdout.count("\n")) == (2, 1)
    assert "cannot be written (" in refused.stdout
    assert (tmp_path / "file").read_text() == "mine"


def test_folder_that_is_not_there_is_made_and_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "none" / "access.yaml"
    assert user(path, "anna").returncode == 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_link_to_the_file_stays_one(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.yaml"
    path.write_text(COMMENTED)
    link.symlink_to(path)
    assert user(link, "anna").returncode == 0
    assert link.is_symlink()
    assert right(path, "anna") == (True, False)


@pytest.mark.parametrize(("again", "code"), [(PASSWORD, 0), ("another one", 2)])
def test_on_a_terminal_the_password_is_asked_for_twice_and_not_shown(path: Path, again: str, code: int) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(REPOSITORY)
        os.execv(sys.executable, [sys.executable, "-m", "hpo", "dashboard-user", "anna", "-f", str(path)])
    shown = b""
    for prompt, typed in ((b"Password of anna: ", PASSWORD), (b"Again: ", again)):
        while not shown.endswith(prompt):
            shown += os.read(terminal, 1024)
        os.write(terminal, f"{typed}\n".encode())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    shown += os.read(terminal, 1024)
    os.close(terminal)
    assert PASSWORD.encode() not in shown
    assert path.exists() == (code == 0)
    assert (b"the two passwords differ" in shown) == (code == 2)


def test_user_without_password_and_nobody_are_never_right(path: Path) -> None:
    path.write_text(f"users:\n  anna: {{password: '{HASHED}'}}\n  carla: {{}}\n")
    passwords = Passwords(read_access(path).users)
    asked = [("anna", PASSWORD), ("anna", "wrong"), ("carla", PASSWORD), ("carla", ""), ("nobody", PASSWORD), ("", "")]
    assert [passwords.is_right(*one) for one in asked] == [True, False, False, False, False, False]
    assert Passwords(Access().users).is_right("anna", PASSWORD) is False


def test_hash_of_nobody_costs_what_those_of_users_do(path: Path) -> None:
    """Else the time that a refusal takes tells whether there is such a user."""
    path.write_text(f"users:\n  anna: {{password: '{HASHED}'}}\n")
    assert HASHED.split("$")[3] in Passwords(read_access(path).users)._nobodys
    assert argon2.PasswordHasher().hash("x").split("$")[3] in Passwords({})._nobodys


def test_session_ends_after_half_a_day(clock: list[float]) -> None:
    found = Sessions()
    token = found.open("anna")
    clock[0] += SESSION_S - 1
    assert found.name_of(token) == "anna"
    clock[0] += 1
    assert found.name_of(token) is None


def test_sessions_of_a_user_are_bounded_and_the_oldest_goes() -> None:
    found = Sessions()
    bens, annas = found.open("ben"), [found.open("anna") for _ in range(SESSIONS + 5)]
    assert [found.name_of(token) for token in annas] == [None] * 5 + ["anna"] * SESSIONS
    assert found.name_of(bens) == "ben"


def test_no_token_is_kept_as_it_is() -> None:
    found = Sessions()
    token = found.open("anna")
    assert token not in repr(vars(found))
    assert len(token) >= 43
    found.close(token)
    assert found.name_of(token) is None


def test_tries_come_back_one_by_one(clock: list[float]) -> None:
    throttle = Throttle()
    assert [throttle.take("as anna", "from here") for _ in range(TRIES)] == [0] * TRIES
    assert throttle.take("as anna", "from there") == TRY_S
    assert throttle.take("as ben", "from here") == TRY_S
    assert throttle.take("as ben", "from there") == 0
    clock[0] += TRY_S / 2
    assert throttle.take("as anna") == TRY_S / 2
    clock[0] += TRY_S / 2
    assert [throttle.take("as anna") for _ in range(2)] == [0, TRY_S]
    throttle.give_back("as anna")
    assert throttle.take("as anna") == 0


def test_tries_of_many_names_take_no_more_memory() -> None:
    throttle = Throttle()
    for number in range(100_000):
        throttle.take(f"as user{number}", "from here")
    assert len(throttle._full_at) == SLOTS


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.5", "10.0.0.5"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("unknown", "unknown"),
    ],
)
def test_whoever_has_a_network_has_one_bucket(address: str, network: str) -> None:
    assert network_of(address) == network
