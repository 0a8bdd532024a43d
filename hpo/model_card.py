"""README.md of a model's folder: what it is for, how it came about, how good it is, and what it is not.

People put such folders on a hub: it names no path, and nothing of a ticket.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.best_file import BestFile, Confirmed, Estimate
from hpo.study import installed_versions
from hpo.yamlfile import write_yaml
from objectives.config import STATIC, TrialConfig
from objectives.data import Data
from objectives.evaluation import METRICS

if TYPE_CHECKING:
    from objectives.finetune import Result

TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "itsm", "incident-similarity"]
USE = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
a, b = model.encode(["VPN drops every hour", "no connection to vpn"], normalize_embeddings=True)
print(a @ b, a @ b >= {threshold:.4f})  # cosine similarity, and whether the two are a match
```

```console
$ hpo match {name} "VPN drops every hour" "no connection to vpn"
$ hpo similar {name} incidents.csv --query "VPN drops every hour"
```
"""
PURPOSE = (
    "Tells how alike two incidents of an IT service desk are: the cosine similarity of their texts' vectors. It finds "
    "duplicates and related tickets; what is done with them is for people to decide."
)
LIMITS = """- The scores hold for the service desk and the time of the incidents that it was trained on.
  Measure again on yours.
- Similar means what the labels say, from 0 on: {labels}.
- Before training, texts were stripped of mail headers, signatures and markup, and names, addresses, hosts and numbers
  were masked. `hpo match` and `hpo similar` do the same; whoever calls `encode` must, too.
- Of a text, the first {tokens} tokens count. Languages other than those of the incidents were never seen.
- The threshold is the best for F1 where {positives:.1%} of the pairs are a match. Where matches are rarer, more of what
  lies above it is none.
"""
TIES = {
    "same_category": "one category",
    "same_subcategory": "one subcategory",
    "near": "one subcategory and more in common",
    "duplicate": "linked duplicates",
}


def model_card(best: BestFile, config: TrialConfig, result: Result, data: Data, said: str, name: str) -> str:
    """`said`: whether the scores of its trial are reproduced. `name`: of the folder."""
    sections = {
        "What it is for": [PURPOSE],
        "How to use it": [USE.format(name=name, threshold=result.scores["threshold"])],
        "Scores": [*_scores(result, data), f"{said[0].upper()}{said[1:]}."],
        "Confirmed on other seeds": _confirmed(best.confirmed) if best.confirmed else [],
        "How it was trained": [*_training(best, config, result, data)],
        "Limits": [_limits(config, data)],
    }
    body = [f"## {heading}\n\n" + "\n\n".join(parts) for heading, parts in sections.items() if parts]
    title = "# A model of incident similarity"
    return "\n\n".join([f"---\n{write_yaml(_front_matter(config), '')}---", title, *map(str.strip, body)]) + "\n"


def _front_matter(config: TrialConfig) -> dict[str, Any]:
    base = _base(config)
    return {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        **({"base_model": base} if base else {}),
        "tags": TAGS,
    }


def _base(config: TrialConfig) -> str | None:
    """As a hub knows it; None for a folder of one's own."""
    name = config.model.removeprefix(STATIC)
    if Path(name).is_absolute():
        return None
    repository, at, _ = (config.model_revision or "").partition("@")
    return repository if at else name


def _scores(result: Result, data: Data) -> Iterator[str]:
    incidents = len({*data.validation.anchors.tolist(), *data.validation.others.tolist()})
    yield (
        f"On {len(data.validation.grades):,} pairs of {incidents:,} incidents that were held out. `spearman` is "
        "against graded labels, the others against match or no match. The ceiling is what a perfect ranking would "
        "have, as labels tie. Intervals are from resampling incidents."
    )
    rows = [
        [name, f"{result.scores[name]:.4f}", "{:.4f} to {:.4f}".format(*result.intervals[name]), f"{ceiling:.4f}"]
        for name, ceiling in result.ceilings.items()
    ]
    yield _table(["metric", "score", "95 %", "ceiling"], rows)
    yield f"Two texts are a match from a cosine similarity of {result.scores['threshold']:.4f} on."
    if result.head:
        yield "`match_head/` holds a classifier that decides in place of the threshold; `hpo match` uses it:"
        yield _table(["metric", "score"], [[name, f"{result.head[name]:.4f}"] for name in METRICS])


def _confirmed(found: Confirmed) -> list[str]:
    on_test = found.test or {}
    rows = [
        [name, f"{mean:.4f}", f"{found.spread[name]:.4f}", f"{on_test[name]:.4f}" if name in on_test else ""]
        for name, mean in found.mean.items()
    ]
    against = f"the baseline {_code(found.against)}"
    lines = [
        f"The configuration was trained on {found.seeds} seeds that the search had not seen.",
        _table(["metric", "mean", "spread between seeds", "mean on test"], rows),
    ]
    if found.gain is not None:
        lines.append(f"On validation its Spearman is {_gain(found.gain)} against {against}.")
    if found.dropped is not None:
        lines.append(f"It was given up: {found.dropped}.")
    if found.test_gain is not None:
        than = "from" if found.verdict == "indistinguishable" else "than"
        how = f"{found.verdict} {than} {against}: {_gain(found.test_gain)}"
        lines.append(f"On test, with {found.test_seeds} further seeds, it is {how}.")
    return lines


def _gain(found: Estimate) -> str:
    low, high = found.interval
    return f"{found.value:+.4f} (95 % {low:+.4f} to {high:+.4f})"


def _training(best: BestFile, config: TrialConfig, result: Result, data: Data) -> Iterator[str]:
    base = _base(config)
    model = _code(base) if base else f"{_code(Path(config.model).name)}, a model of our own"
    static = ", of which only the token vectors were taken" if config.model.startswith(STATIC) else ""
    came_from = best.provenance
    yield (
        f"From {model}{static}, by incident-hpo: trial {came_from.trial} of its study {_code(came_from.study)}. "
        f"Of {len(data.table):,} incidents, {len(data.splits['train']):,} were trained on, "
        f"{len(data.splits['validation']):,} chose the configuration and {len(data.splits['test']):,} were kept aside."
    )
    yield _table(["setting", "value"], [[name, str(value)] for name, value in _facts(best, config, result).items()])


def _facts(best: BestFile, config: TrialConfig, result: Result) -> dict[str, object]:
    training, mining, second = config.training, config.mining, best.loss.second
    loss = f"{best.loss.name} (scale {training.scale:g}, margin {training.margin:g})"
    return {
        "loss": f"{loss} and {second.weight:g} of {second.name}" if second else loss,
        "training pairs": f"{result.train_pairs:,}; hard negatives: {mining.hard_negatives}",
        "augmentation": mining.augmentation,
        "stage before": config.pretraining.stage,
        "learning rate": f"{training.learning_rate:g}, {training.schedule}, warmup {training.warmup_ratio:g}",
        "batch size": training.batch_size,
        "epochs": f"{result.best_epoch:.2f}, the best of {result.stop_epoch:.2f}; {training.epochs} were planned",
        "seed": config.seed,
        "device": f"{result.device}, {result.precision}, threads: {config.threads}",
        "versions": ", ".join(f"{name} {version}" for name, version in installed_versions().items()),
    }


def _limits(config: TrialConfig, data: Data) -> str:
    ladder = data.ladder
    return LIMITS.format(
        labels=", ".join(f"{grade:g} for {TIES[tie]}" for tie, grade in ladder.grades.items()),
        positives=float((data.validation.grades >= ladder.positive).mean()),
        tokens=config.max_seq_tokens,
    )


def _table(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _code(name: str) -> str:
    """Nothing in a name is taken for markup."""
    return f"`{name.replace('`', chr(39))}`"
