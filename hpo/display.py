"""What people see in the terminal: the live view of a study and the table at its end. Right at 80 columns."""

from __future__ import annotations

import sys

from optuna.trial import TrialState
from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo.status import Comparison, Snapshot
from hpo.study import BASELINE

PIPED_WIDTH = 80


def make_console() -> Console:
    """80 columns when piped, so that a log reads like a terminal; nothing in a name is taken for markup."""
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return Console(highlight=False, markup=False, emoji=False, width=width)


def status_line(snapshot: Snapshot) -> str:
    counts = snapshot.counts
    parts = [f"{snapshot.study}: {snapshot.finished}/{snapshot.budget} trials", f"{counts['running']} running"]
    parts += [f"{counts[state]} {state}" for state in ("pruned", "failed") if counts[state]]
    if snapshot.best_spearman is not None:
        parts.append(f"best {snapshot.best_spearman:.3f} (trial {snapshot.best_trial})")
    if snapshot.time_left_s is not None and snapshot.finished < snapshot.budget:
        parts.append(f"{duration(snapshot.time_left_s)} left")
    return ", ".join(parts)


def live_view(snapshot: Snapshot) -> RenderableType:
    """A bar, the status line, and one line for each running trial."""
    bar = Table.grid(expand=True)  # a bare ProgressBar ends without a line break
    bar.add_row(ProgressBar(total=snapshot.budget, completed=snapshot.finished))
    paused = [Text(snapshot.paused)] if snapshot.paused else []
    return Group(bar, Text(status_line(snapshot), no_wrap=True, overflow="ellipsis"), *running_lines(snapshot), *paused)


def running_lines(snapshot: Snapshot) -> list[Text]:
    lines = []
    for trial in snapshot.trials:
        if trial.state == TrialState.RUNNING:
            reports = trial.intermediate_values
            last = f"spearman {reports[max(reports)]:.3f} at {max(reports):,} examples" if reports else "starting"
            name = f"trial {trial.number} {trial.user_attrs.get(BASELINE, '')}".rstrip()
            lines.append(Text(f"  {name:<20} {last}", no_wrap=True, overflow="ellipsis"))
    return lines


def comparison_table(rows: list[Comparison]) -> Table:
    """A column per metric; lines from the untrained model over the baselines to the best, its ceiling and target."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("")
    for row in rows:
        table.add_column(row.metric, justify="right", no_wrap=True)
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
