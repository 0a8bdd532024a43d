"""Whether a model that was trained again has the scores that its trial recorded, and where not, what was different."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from hpo.best_file import BestFile, digest
from hpo.display import plain_table
from hpo.study import installed_versions
from objectives.config import TrialConfig
from objectives.evaluation import METRICS

if TYPE_CHECKING:
    from objectives.finetune import Result

TOLERANCE = 1e-6  # on a CPU, with the same versions


@dataclass(frozen=True)
class Compared:
    """A score, as it was recorded and as it is now."""

    name: str
    recorded: float
    trained: float

    @property
    def difference(self) -> float:
        return self.trained - self.recorded

    @property
    def is_reproduced(self) -> bool:
        return abs(self.difference) <= TOLERANCE


def compared(best: BestFile, result: Result) -> list[Compared]:
    """Of the match head what both have."""
    scores = [Compared(name, best.metrics[name].value, result.scores[name]) for name in METRICS]
    heads = [Compared(f"head {name}", best.head_metrics.get(name, score), score) for name, score in result.head.items()]
    return [*scores, *(one for one in heads if one.name.removeprefix("head ") in best.head_metrics)]


def comparison_table(rows: Sequence[Compared]) -> Table:
    table = plain_table("", "recorded", "trained", "difference")
    table.add_column("", no_wrap=True)
    for row in rows:
        word = "reproduced" if row.is_reproduced else "differs"
        table.add_row(row.name, f"{row.recorded:.6f}", f"{row.trained:.6f}", f"{row.difference:+.6f}", word)
    return table


def verdict(rows: Sequence[Compared], best: BestFile, config: TrialConfig, result: Result) -> str:
    trial = f"trial {best.provenance.trial} of study {best.provenance.study}"
    if all(row.is_reproduced for row in rows):
        return f"reproduced: every score is within {TOLERANCE:g} of what {trial} recorded"
    worst = max(rows, key=lambda row: abs(row.difference))
    far = f"{worst.name} is {abs(worst.difference):.6f} {'above' if worst.difference > 0 else 'below'}"
    unlike = ", ".join(_unlike(best, config, result))
    why = f"What differs: {unlike}" if unlike else _by_chance(best, result)
    return f"not reproduced: {far} what {trial} recorded. {why}"


def _unlike(best: BestFile, config: TrialConfig, result: Result) -> list[str]:
    before, versions = best.provenance, best.provenance.versions
    found = [("device", before.device, result.device), ("threads", before.threads, config.threads)]
    found += [(name, versions.get(name), here) for name, here in installed_versions().items()]
    unlike = [f"{name} {here} (then {recorded})" for name, recorded, here in found if recorded not in (None, here)]
    edited = [] if before.configuration in (None, digest(config)) else ["the file was edited after its export"]
    return unlike + edited


def _by_chance(best: BestFile, result: Result) -> str:
    if best.provenance.deterministic and result.deterministic:
        return "Device, versions and threads are the same, but another kind of CPU may round otherwise"
    return "Device and versions are the same, but on a GPU some sums depend on the order in which threads end"
