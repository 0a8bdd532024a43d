"""Who is logged in to the dashboard, and how often somebody may try. All of it ends with the process."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import argon2

from hpo.access import LONGEST, User

SESSION_S = 12 * 3600
SESSIONS = 20  # of one user; the oldest goes for a new one
TRIES, TRY_S = 10, 30.0  # failed ones at once, and one more each 30 s
SLOTS = 1 << 16  # of a throttle, which needs no more memory however many come
HASHERS = threading.BoundedSemaphore(2)  # each takes 64 MiB
HASHER_WAIT_S = 0.5  # for one of them; a thread that waits answers nobody else


@dataclass(frozen=True)
class Session:
    name: str
    ends: float


class Sessions:
    """By the hash of a token: nothing here lets anybody in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}  # oldest first

    def open(self, name: str) -> str:
        """A new token."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            now = time.monotonic()
            kept = {key: session for key, session in self._sessions.items() if session.ends > now}
            for key in [key for key, session in kept.items() if session.name == name][: -SESSIONS + 1]:
                del kept[key]
            self._sessions = kept | {_key(token): Session(name, now + SESSION_S)}
        return token

    def name_of(self, token: str) -> str | None:
        with self._lock:
            session = self._sessions.get(_key(token))
        return session.name if session is not None and session.ends > time.monotonic() else None

    def close(self, token: str) -> None:
        with self._lock:
            self._sessions.pop(_key(token), None)


class Throttle:
    """A bucket of tries for each user and each address; several may share one, which no outsider can choose."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._full_at = [0.0] * SLOTS  # when the last of the tries that were taken comes back

    def take(self, *keys: str) -> float:
        """Takes a try from the bucket of each key; where one is empty, takes none and says for how many seconds."""
        now, places = time.monotonic(), _places(keys)
        with self._lock:
            wait_s = max(self._full_at[place] for place in places) - now - (TRIES - 1) * TRY_S
            if wait_s <= 0:
                for place in places:
                    self._full_at[place] = max(now, self._full_at[place]) + TRY_S
        return max(wait_s, 0.0)

    def give_back(self, *keys: str) -> None:
        """One that did not fail."""
        with self._lock:
            for place in _places(keys):
                self._full_at[place] -= TRY_S


class Passwords:
    def __init__(self, users: dict[str, User]) -> None:
        self._hashes = {name: str(user.password) for name, user in users.items() if user.password is not None}
        self._nobodys = _hash_like(next(iter(self._hashes.values()), None))

    def is_right(self, name: str, password: str) -> bool | None:
        """Takes as long for a name that is not there. None: too many ask at once."""
        if len(password) > LONGEST:
            return False
        if not HASHERS.acquire(timeout=HASHER_WAIT_S):
            return None
        try:
            return argon2.PasswordHasher().verify(self._hashes.get(name, self._nobodys), password)
        except argon2.exceptions.VerificationError:
            return False
        finally:
            HASHERS.release()


def network_of(address: str) -> str:
    """Of IPv6 the 64 bits that a provider gives to one customer, who chooses the others."""
    try:
        version = ip_address(address).version
    except ValueError:
        return address
    return str(ip_network((address, 64), strict=False)) if version == 6 else address


def _hash_like(hashed: str | None) -> str:
    """Of a password that nobody has; as costly."""
    hasher = argon2.PasswordHasher()
    if hashed is not None:
        hasher = argon2.PasswordHasher.from_parameters(argon2.extract_parameters(hashed))
    return hasher.hash(secrets.token_urlsafe(32))


def _key(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _places(keys: tuple[str, ...]) -> set[int]:
    return {hash(key) % SLOTS for key in keys}
