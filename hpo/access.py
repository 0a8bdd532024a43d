"""The access file of the dashboard: who may log in, who may write, and which proxy has logged people in."""

from __future__ import annotations

import getpass
import io
import re
import sys
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

import argon2
from pydantic import AfterValidator, BaseModel, Field
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from hpo.errors import InputError
from hpo.files import write_text
from hpo.yamlfile import Place, read_yaml, validated
from objectives.config import STRICT

SHORTEST, LONGEST = 8, 1024  # characters of a password
HASH = re.compile(r"\$argon2id\$v=19\$m=\d{1,7},t=\d{1,3},p=\d{1,2}\$[A-Za-z0-9+/]{11,88}\$[A-Za-z0-9+/]{22,88}")


def is_name(text: str) -> bool:
    """Of a user; one with a comma may be two headers of a proxy."""
    return text.isprintable() and re.fullmatch(r"[^\s,]{1,64}", text) is not None


def _address(text: str) -> str:
    return str(ip_address(text))


class User(BaseModel):
    model_config = STRICT
    password: Any = None  # what it is is said in read_access, without repeating it; None: known by the proxy alone
    write: bool = False


class Proxy(BaseModel):
    """What it says counts from its addresses alone."""

    model_config = STRICT
    addresses: Annotated[tuple[Annotated[str, AfterValidator(_address)], ...], Field(min_length=1, strict=False)]
    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] | None = None  # None: it logs nobody in, but speaks TLS


class _File(BaseModel):
    model_config = STRICT
    users: dict[str, Any] = {}
    proxy: Proxy | None = None
    hosts: Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")], ...], Field(strict=False)] = ()


@dataclass(frozen=True)
class Access:
    """Empty: only whoever holds the token of the process."""

    users: dict[str, User] = field(default_factory=dict)
    proxy: Proxy | None = None
    hosts: tuple[str, ...] = ()


def read_access(path: Path) -> Access:
    """Raises InputError; what stands where a password's hash belongs is never repeated."""
    file = read_yaml(path, _File)
    users = {name: _user(name, value, Place(path, ("users", name))) for name, value in file.users.items()}
    return Access(users, file.proxy, file.hosts)


def refuse_useless(access: Access, path: Path) -> None:
    """Raises InputError where somebody, or everybody, is locked out."""
    if access.proxy is not None and access.proxy.header is not None:
        return
    if not access.users:
        raise InputError(f"{path}: nobody could log in; `hpo dashboard-user NAME -f {path}` makes a user")
    if without := [name for name, user in access.users.items() if user.password is None]:
        name = without[0]
        raise Place(path, ("users", name)).error(
            f"{name} has no password, and no proxy says who it is; `hpo dashboard-user {name} -f {path}` sets one"
        )


def make_user(path: Path, name: str, *, write: bool | None) -> None:
    """Asks for the password. `write` None: as it was, and of a new user no. Raises InputError; the file then stays."""
    if not is_name(name):
        raise InputError(f"{name!r} cannot be the name of a user: 1 to 64 characters, no blank, no comma")
    if path.exists():
        read_access(path)
    hashed = argon2.PasswordHasher().hash(_ask_for_password(name))
    write_text(path.resolve(), _changed(path, name, hashed, write), mode=0o600)  # a link stays one
    print(f"{name} {'may read and write' if read_access(path).users[name].write else 'may read'}: {path}")


def _user(name: str, value: Any, place: Place) -> User:
    if not is_name(name):
        raise place.error(f"{name!r} cannot be the name of a user: 1 to 64 characters, no blank, no comma")
    if not isinstance(value, dict):
        raise place.error(f"users.{name}: expected a mapping such as {{password: ..., write: true}}")
    user = validated(value, User, place)
    if user.password is not None and not (isinstance(user.password, str) and HASH.fullmatch(user.password)):
        raise place.below("password").error(
            f"users.{name}.password: expected an argon2id hash; `hpo dashboard-user {name} -f {place.path}` writes it"
        )
    return user


def _ask_for_password(name: str) -> str:
    """Never an argument: those are for everybody on the box to see."""
    if sys.stdin.isatty():
        password = getpass.getpass(f"Password of {name}: ")
        if getpass.getpass("Again: ") != password:
            raise InputError("the two passwords differ; nothing was changed")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not SHORTEST <= len(password) <= LONGEST:
        raise InputError(f"a password has {SHORTEST} to {LONGEST} characters, this one has {len(password)}")
    return password


def _changed(path: Path, name: str, hashed: str, write: bool | None) -> str:
    """The file's text with comments, order and quotes as they are."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = LONGEST
    content = yaml.load(path.read_text(encoding="utf-8-sig")) if path.exists() else {}
    user = content.setdefault("users", {}).setdefault(name, {})
    user["password"] = DoubleQuotedScalarString(hashed)
    if write is not None:
        user["write"] = write
    out = io.StringIO()
    yaml.dump(content, out)
    return out.getvalue()
