"""The training loop: sentence-transformers' model and loss, torch's optimizer, the schedules of transformers.

Our own loop rather than SentenceTransformerTrainer, because a trial needs exact steps (evaluation at fixed numbers
of examples seen, whatever the batch size), no hidden filter of NaN, an order of examples that is a function of
(seed, epoch), and to go on after an interruption as if there had been none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import islice

import torch

from objectives.config import AT_ONCE, Memory, Training
from objectives.losses import batches, make_terms
from objectives.mining import TrainPairs
from objectives.models import Encoder, Weights
from objectives.nearness import Barred
from objectives.optimization import Optimization
from objectives.progress import UNINTERRUPTED, Fit, Interrupted, Interruptions, Progress, Report, Scores, Verdict
from objectives.resuming import Keeper, resume


def fit(
    encoder: Encoder,
    pairs: TrainPairs,
    config: Training,
    seed: int,
    evaluate: Callable[[], Scores],
    report: Report,
    interruptions: Interruptions = UNINTERRUPTED,
    memory: Memory = AT_ONCE,
    is_alike: Barred | None = None,
) -> Fit:
    """Trains on the rows of `pairs` that the losses need; texts that `is_alike` names are no negatives of one another.

    The model ends with the weights of the best evaluation.

    A run that was cut short goes on from its newest checkpoint, bit for bit as if it had not been.
    Raises Diverged before the first step that is not finite, Interrupted, CheckpointError.
    """
    torch.manual_seed(seed)
    terms = make_terms(config, pairs, is_alike)
    rows = len(terms[0].ends)
    optimization = Optimization(encoder, terms, config, config.epochs * math.ceil(rows / config.batch_size), memory)
    run = resume(optimization, interruptions)
    interruptions.on_start(config.epochs * rows, run.examples, run.curve)
    began = time.monotonic() - run.train_s
    evaluations = _evaluation_steps(config.epochs * rows, config.eval_every_examples)
    steps = islice(batches(terms, config.batch_size, config.epochs, seed), run.batches, None)
    keep = Keeper(optimization, run, interruptions)
    try:
        while run.stop_reason == "completed" and len(run.curve) < len(evaluations):
            run.train_s = time.monotonic() - began
            keep.now_and_then()
            if run.examples >= evaluations[len(run.curve)]:
                progress = Progress(evaluations[len(run.curve)], run.examples / rows, evaluate())
                _judge(run, progress, encoder, config, report(progress))
                continue
            interruptions.check()
            batch = next(steps)
            optimization.step(batch)
            run.batches, run.examples = run.batches + 1, run.examples + len(batch[0])
    except Interrupted:
        keep.now()
        raise
    encoder.model.load_state_dict(run.best_weights)
    return run


def _evaluation_steps(total: int, every: int) -> list[int]:
    """Multiples of `every`, and the end; none within half an interval of the end, where batches would blur the two."""
    return [*range(every, total - every // 2, every), total]


def _judge(run: Fit, progress: Progress, encoder: Encoder, config: Training, verdict: Verdict) -> None:
    """Enters an evaluation, and whether it is the last."""
    run.curve.append(progress)
    run.evaluations_since_best += 1
    if run.best is None or progress.scores["spearman"] > run.best.scores["spearman"]:
        run.best = progress
        _keep(encoder.model.state_dict(), run.best_weights)
        run.evaluations_since_best = 0
    if verdict != "go on":
        run.stop_reason = "pruned" if verdict == "prune" else "overtaken"
    elif config.patience != "off" and progress.epoch >= config.min_epochs:
        run.stop_reason = "early_stopping" if run.evaluations_since_best >= config.patience else "completed"


def _keep(weights: Weights, place: Weights) -> None:
    """A copy, where the one before it was: there is never a third."""
    for name, value in weights.items():
        if name in place:
            place[name].copy_(value)
        else:
            place[name] = value.clone()
