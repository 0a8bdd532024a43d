"""A real terminal of a given size, by tmux: what stands on its screen, its keys, a new size."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

TMUX = shutil.which("tmux")
DEADLINE_S = 60.0
POLL_S = 0.1
STILL_S = 0.03  # between two captures that must be equal: one may fall into the middle of a repaint
NUMBERS = count()


@dataclass(frozen=True)
class Terminal:
    """`width` and `height` as it began."""

    server: str
    width: int

    def screen(self) -> list[str]:
        """Its lines, without blanks at the ends of lines."""
        before = None
        while (now := self._tmux("capture-pane", "-p", "-t", "0")) != before:
            before = now
            time.sleep(STILL_S)
        return [line.rstrip() for line in now.split("\n")[:-1]]

    def until(self, holds: Callable[[list[str]], object], deadline_s: float = DEADLINE_S) -> list[str]:
        """The first screen of which that holds."""
        give_up = time.monotonic() + deadline_s
        while not holds(lines := self.screen()):
            assert time.monotonic() < give_up, "\n".join(lines)
            time.sleep(POLL_S)
        return lines

    def press(self, *keys: str) -> None:
        self._tmux("send-keys", "-t", "0", *keys)

    def resize(self, width: int, height: int) -> None:
        self._tmux("resize-window", "-t", "0", "-x", str(width), "-y", str(height))

    def colours(self) -> str:
        """The screen with its escape sequences."""
        return self._tmux("capture-pane", "-p", "-e", "-t", "0")

    def is_clean(self) -> bool:
        """The first screen is shown, and a cursor in it."""
        return self._tmux("display-message", "-p", "-t", "0", "#{alternate_on} #{cursor_flag}").strip() == "0 1"

    def close(self) -> None:
        self._tmux("kill-server")

    def _tmux(self, *arguments: str) -> str:
        return _run(self.server, *arguments)


def open_terminal(command: str, width: int, height: int, **environment: str) -> Terminal:
    """Runs `command` in a shell, which then says its exit code and waits."""
    server = f"hpo-{os.getpid()}-{next(NUMBERS)}"
    settings = shlex.join(f"{name}={value}" for name, value in environment.items())
    script = f"env {settings} {command}; echo exit code $?; cat"
    _run(server, "new-session", "-d", "-x", str(width), "-y", str(height), script)
    return Terminal(server, width)


def _run(server: str, *arguments: str) -> str:
    assert TMUX
    done = subprocess.run([TMUX, "-u", "-f", "/dev/null", "-L", server, *arguments], capture_output=True, check=True)
    return done.stdout.decode()
