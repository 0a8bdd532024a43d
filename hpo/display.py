"""What people see in the terminal: a study in one line, and the table at its end. Right at 80 columns."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

from rich import box
from rich.console import Console
from rich.table import Table

from hpo.status import Comparison, Snapshot

PIPED_WIDTH = 80


def make_console() -> Console:
    """80 columns when piped, so that a log reads like a terminal; nothing in a name is taken for markup.

    What the encoding lacks is shown as a question mark. A terminal is asked for its size: COLUMNS may be an old one.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if not sys.stdout.isatty():
        return Console(highlight=False, markup=False, emoji=False, width=PIPED_WIDTH, force_terminal=False)
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return Console(highlight=False, markup=False, emoji=False, _environ=environment)


def status_line(snapshot: Snapshot) -> str:
    found = dict(zip(snapshot.counts, counts_in_words(snapshot), strict=True))
    parts = [f"{snapshot.study}: {snapshot.finished}/{snapshot.budget} trials", found["running"]]
    parts += [found[state] for state in ("pruned", "failed") if snapshot.counts[state]]
    if snapshot.best_spearman is not None:
        parts.append(best_in_words(snapshot))
    if snapshot.time_left_s is not None and snapshot.finished < snapshot.budget:
        parts.append(f"{duration(snapshot.time_left_s)} left")
    return ", ".join(parts)


def counts_in_words(snapshot: Snapshot) -> list[str]:
    """One for each count."""
    of_these = {"pruned": f" ({snapshot.infeasible} infeasible)"} if snapshot.infeasible else {}
    return [f"{count} {state}{of_these.get(state, '')}" for state, count in snapshot.counts.items()]


def best_in_words(snapshot: Snapshot) -> str:
    if snapshot.best_spearman is None:
        return "no best trial yet"
    baseline = f", {snapshot.best_baseline}" if snapshot.best_baseline else ""
    return f"best {snapshot.best_spearman:.4f} (trial {snapshot.best_trial}{baseline})"


def plain_table(*headings: str, words: int = 1) -> Table:
    """The first columns hold words, which may wrap; the others hold numbers, which do not."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for place, heading in enumerate(headings):
        is_number = place >= words
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=is_number)
    return table


def comparison_table(rows: list[Comparison]) -> Table:
    """A column per metric; lines from the untrained model over the baselines to the best, its ceiling and target."""
    table = plain_table("", *(row.metric for row in rows))
    table.add_row("untrained", *(f"{row.untrained:.3f}" for row in rows))
    for name in rows[0].baselines:
        table.add_row(name, *(f"{row.baselines[name]:.3f}" for row in rows))
    table.add_row("best", *(f"{row.best:.3f}" for row in rows), style="bold")
    table.add_row("  95 % from", *(f"{row.interval[0]:.3f}" for row in rows))
    table.add_row("  to", *(f"{row.interval[1]:.3f}" for row in rows))
    if rows[0].head is not None:
        table.add_row("match head", *(f"{row.head:.3f}" for row in rows))
    table.add_section()
    table.add_row("ceiling", *(f"{row.ceiling:.3f}" for row in rows))
    table.add_row("target", *(f"{row.target:.3f}" if row.target else "" for row in rows))
    return table


def verdicts(rows: list[Comparison], baselines: list[Comparison] | None = None) -> list[str]:
    """Each target in words: met, open, or out of reach whatever the model; and what falls behind a baseline."""
    found = [f"{row.metric}: {_verdict(row, row.target)}" for row in rows if row.target is not None]
    if worse := behind(rows, baselines or rows):
        found.append(f"no trial is as good as the baselines in everything: the best falls behind in {', '.join(worse)}")
    return found


def behind(rows: list[Comparison], baselines: list[Comparison]) -> list[str]:
    """Metrics in which the best is worse than a baseline; of Spearman the table tells."""
    pairs = zip(rows[1:], baselines[1:], strict=True)
    return [row.metric for row, other in pairs if row.best < max(other.baselines.values(), default=0.0)]


def _verdict(row: Comparison, target: float) -> str:
    if target > row.ceiling:
        return out_of_reach(target, row.ceiling)
    if row.best >= target:
        return f"target {target:.2f} met ({row.best:.3f})"
    return f"target {target:.2f} not met ({row.best:.3f})"


def out_of_reach(target: float, ceiling: float) -> str:
    return f"target {target:.2f} is out of reach: these labels allow {ceiling:.3f} at most"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
