"""The training loop: sentence-transformers' model and loss, torch's optimizer, the schedules of transformers.

Our own loop rather than SentenceTransformerTrainer, because a trial needs exact steps (evaluation at fixed numbers
of examples seen, whatever the batch size), no hidden filter of NaN, and an order of examples that is a function of
(seed, epoch).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from typing import Literal

import numpy as np
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import get_scheduler

from objectives.config import Training
from objectives.incidents import IntArray
from objectives.models import Encoder

StopReason = Literal["completed", "early_stopping", "pruned"]
Scores = dict[str, float]


class Diverged(ArithmeticError):
    """The loss is not finite."""

    exit_code = 1


@dataclass(frozen=True)
class Progress:
    """One evaluation. `step` is a number of examples seen that all trials of a study have in common."""

    step: int
    epoch: float
    scores: Scores


Verdict = Literal["go on", "prune"]
Report = Callable[[Progress], Verdict]


@dataclass
class Fit:
    """What training did so far; `best` is the evaluation whose weights the model carries at the end."""

    stop_reason: StopReason = "completed"
    curve: list[Progress] = field(default_factory=list)
    best: Progress | None = None
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    evaluations_since_best: int = 0


def fit(
    encoder: Encoder, ends: IntArray, config: Training, seed: int, evaluate: Callable[[], Scores], report: Report
) -> Fit:
    """Trains on `ends`, shape (pairs, 2), of text numbers; the model ends with the weights of the best evaluation.

    Raises Diverged on the first loss that is not finite.
    """
    torch.manual_seed(seed)
    run = Fit()
    step_on = _optimizer_step(encoder, config, steps=config.epochs * math.ceil(len(ends) / config.batch_size))
    seen, evaluations = 0, _evaluation_steps(config.epochs * len(ends), config.eval_every_examples)
    for batch in _batches(len(ends), config.batch_size, config.epochs, seed):
        step_on(ends[batch])
        seen += len(batch)
        if seen >= evaluations[0]:
            progress = Progress(evaluations.pop(0), seen / len(ends), evaluate())
            verdict = report(progress)
            _remember(run, progress, encoder)
            if verdict == "prune" or _is_patience_over(run, config, progress):
                run.stop_reason = "pruned" if verdict == "prune" else "early_stopping"
                break
    encoder.model.load_state_dict(run.best_weights)
    return run


def _evaluation_steps(total: int, every: int) -> list[int]:
    """Multiples of `every`, and the end; none within half an interval of the end, where batches would blur the two."""
    return [*range(every, total - every // 2, every), total]


def _batches(pairs: int, batch_size: int, epochs: int, seed: int) -> Iterator[IntArray]:
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(pairs)
        for start in range(0, pairs, batch_size):
            yield order[start : start + batch_size]


def _optimizer_step(encoder: Encoder, config: Training, steps: int) -> Callable[[IntArray], None]:
    loss_function = MultipleNegativesRankingLoss(encoder.model, scale=config.scale)
    parameters = [parameter for parameter in encoder.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True)
    warmup_steps = math.ceil(config.warmup_ratio * steps)
    scheduler = get_scheduler(config.schedule, optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps)
    no_labels = torch.empty(0)

    def step_on(ends: IntArray) -> None:
        encoder.model.train()
        features = [encoder.collate(ends[:, 0]), encoder.collate(ends[:, 1])]
        loss = loss_function(features, no_labels)
        if not torch.isfinite(loss):
            raise Diverged(f"the loss is {loss.item()}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

    return step_on


def _remember(run: Fit, progress: Progress, encoder: Encoder) -> None:
    run.curve.append(progress)
    run.evaluations_since_best += 1
    if run.best is None or progress.scores["spearman"] > run.best.scores["spearman"]:
        run.best = progress
        run.best_weights = {name: value.clone() for name, value in encoder.model.state_dict().items()}
        run.evaluations_since_best = 0


def _is_patience_over(run: Fit, config: Training, progress: Progress) -> bool:
    if config.patience == "off" or progress.epoch < config.min_epochs:
        return False
    return run.evaluations_since_best >= config.patience
