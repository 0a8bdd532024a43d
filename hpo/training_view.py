"""What people see while a model is trained: in a terminal a bar with the time left, in a pipe a line per evaluation."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo.display import duration

if TYPE_CHECKING:
    from objectives.progress import Progress


class TrainingView:
    """`end`: the epoch at which training ends, unless it stops early."""

    def __init__(self, console: Console, end: float) -> None:
        self._console, self._end = console, end
        self._epoch, self._spearman = 0.0, float("-inf")
        self._began = self._seen = 0.0  # by the clock, when training began and at the last evaluation

    def shown(self) -> AbstractContextManager[object]:
        """While the bar is to be there; it is gone afterwards."""
        if not self._console.is_terminal:
            return nullcontext()
        return Live(console=self._console, get_renderable=self._bar, transient=True)

    def begin(self, *_: Any) -> None:
        """All before was preparation, of which nobody knows how long it takes."""
        self._began = self._seen = time.monotonic()

    def add(self, progress: Progress) -> None:
        self._epoch, self._seen = progress.epoch, time.monotonic()
        self._spearman = max(self._spearman, progress.scores["spearman"])
        if not self._console.is_terminal:
            self._console.print(f"epoch {progress.epoch:6.2f}  spearman {progress.scores['spearman']:.4f}")

    def _bar(self) -> RenderableType:
        grid = Table.grid(expand=True)  # a bare ProgressBar ends without a line break
        grid.add_row(ProgressBar(total=self._end, completed=self._epoch, pulse=not self._epoch))
        return Group(grid, Text(self._line(), no_wrap=True, overflow="ellipsis"))

    def _line(self) -> str:
        if not self._began:
            return "preparing: incidents, pairs, and the scores of the untrained model"
        if not self._epoch:
            return f"epoch 0.00 of {self._end:g}, training for {duration(time.monotonic() - self._began)}"
        left = (self._seen - self._began) * (self._end / self._epoch - 1) - (time.monotonic() - self._seen)
        return (
            f"epoch {self._epoch:.2f} of {self._end:g}, spearman {self._spearman:.4f} so far, "
            f"{duration(max(left, 0))} left at most"
        )
