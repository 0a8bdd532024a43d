"""One trial, from incidents to scores: the straight line that a worker, `hpo train` and the tests all call."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from objectives.config import ALIVE_S, AT_ONCE, COLUMNS, HEAD_FOLDER, STATIC, Memory, TrialConfig
from objectives.data import Data, load_data, train_pairs
from objectives.device import device_name, is_deterministic, resolved
from objectives.diagnosis import Diagnosis, diagnose, seen_pairs
from objectives.evaluation import (
    RESAMPLES,
    Collapsed,
    FloatArray,
    MetricName,
    Ranking,
    bootstrap_intervals,
    ceilings,
    rank_pairs,
    resampled,
    score,
)
from objectives.grades import may_be_alike
from objectives.incidents import IntArray
from objectives.match_head import MatchHead, Practice, fit_head, probabilities_of, save_head, unseen_incidents
from objectives.mining import TrainPairs
from objectives.model_files import fetch
from objectives.models import Encoder, Weights, encode, load_encoder
from objectives.nearness import BoolArray
from objectives.pairs import GradedPairs, held_out_pairs
from objectives.progress import UNINTERRUPTED, Fit, Interruptions, Progress, Report, Scores, StopReason, Verdict
from objectives.reading import DataError
from objectives.stages import stage_weights
from objectives.training import fit

PAIRS_AT_ONCE = 1_024  # whose vectors stay in the CPU's cache
UNTRAINED: dict[str, Scores] = {}  # of the base models that this process has met
MOST_MODELS = 16


@dataclass(frozen=True)
class Result:
    """What is recorded of a trial; `scores` are of the best evaluation, which the saved model reproduces."""

    scores: Scores
    intervals: dict[str, tuple[float, float]]  # 95 %; empty for a pruned trial
    ceilings: dict[MetricName, float]
    untrained: Scores
    stop_reason: StopReason
    stop_epoch: float
    best_epoch: float
    train_pairs: int
    device: str
    precision: str
    deterministic: bool
    train_s: float = field(compare=False)  # over all runs
    texts_per_s: float = field(compare=False)  # encoded in the last evaluation
    model_mib: float  # as it is saved
    micro_batch: int | None  # None: batches were computed at once
    gradient_checkpointing: bool
    head: Scores  # of the match head, on validation; empty without one
    no_head: str  # why there is none, where one was asked for
    train_spearman: float | None  # on training incidents, as on validation; None for a pruned trial, too
    diagnosis: Diagnosis  # empty for a pruned trial


@dataclass(frozen=True)
class Finetuned:
    result: Result
    encoder: Encoder
    head: MatchHead | None

    def save(self, folder: Path) -> None:
        self.encoder.whole().save(str(folder), create_model_card=False)
        if self.head is not None:
            save_head(self.head, folder / HEAD_FOLDER)


def finetune(
    config: TrialConfig,
    report: Report,
    interruptions: Interruptions = UNINTERRUPTED,
    memory: Memory = AT_ONCE,
    cache: Path | None = None,
) -> Finetuned:
    """Raises Diverged or Collapsed (these parameters cannot work), Interrupted, or for a broken set-up DataError,
    ModelError, DeviceError or CheckpointError.
    """
    torch.set_num_threads(config.threads)
    data = load_data(config, cache)
    interruptions.check()
    model = _at_hand(config)
    untrained = _untrained(config, model, data, interruptions.check)

    weights = stage_weights(config, model, data, interruptions.check, cache)

    def evaluate(encoder: Encoder) -> Scores:
        return score(rank_validation(encoder, data, interruptions.check))

    encoder, mined, run = _train(config, model, weights, data, evaluate, report, interruptions, memory, cache)
    began, pairs = time.monotonic(), data.validation
    ranking = rank_validation(encoder, data, interruptions.check)
    encode_s = time.monotonic() - began
    pruned = run.stop_reason == "pruned"
    head, no_head, found = None, "", None
    if config.head.head != "off" and not pruned:
        vectors = encode(encoder, np.arange(len(data.table)), interruptions.check)
        practice = _practise(config, model, weights, data, run, interruptions, memory)
        head, no_head = _headed(config, data, vectors, practice, interruptions.check)
        found = probabilities_of(head, data.table, vectors, pairs) if head else None
    scores = score(ranking)
    result = Result(
        scores=scores,
        intervals={} if pruned else bootstrap_intervals(ranking, pairs.anchors, pairs.others, config.pairs.seed),
        ceilings=ceilings(pairs.grades, data.ladder.positive),
        untrained=untrained,
        stop_reason=run.stop_reason,
        stop_epoch=run.curve[-1].epoch,
        best_epoch=run.best.epoch if run.best else 0.0,
        train_pairs=mined.rows(COLUMNS[config.training.loss]),
        device=device_name(),
        precision=resolved(config.training.precision, encoder.model),
        deterministic=is_deterministic(),
        train_s=run.train_s,
        texts_per_s=len(np.union1d(pairs.anchors, pairs.others)) / encode_s,
        model_mib=sum(weights.nbytes for weights in encoder.whole().state_dict().values()) / 2**20,
        **memory.model_dump(),
        head=score(rank_pairs(found, pairs.grades, data.ladder.positive)) if found is not None else {},
        no_head=no_head,
        train_spearman=None if pruned else _on_training(encoder, config, cache, data, interruptions.check),
        diagnosis={} if pruned else diagnose(ranking, scores["threshold"], found),
    )
    return Finetuned(result, encoder, head)


def _on_training(
    encoder: Encoder, config: TrialConfig, cache: Path | None, data: Data, check: Callable[[], None]
) -> float | None:
    """Spearman; how far it is above that on validation is what the model has learnt by heart."""
    if (pairs := seen_pairs(config, cache)) is None:
        return None
    with suppress(Collapsed):
        ranking = rank_pairs(_similarities(encoder, pairs, check), pairs.grades, data.ladder.positive)
        return score(ranking)["spearman"]
    return None


def _headed(
    config: TrialConfig, data: Data, vectors: NDArray[np.float32], practice: Practice, check: Callable[[], None]
) -> tuple[MatchHead | None, str]:
    """The head, or why there is none: the model is as good without it.

    In a thread: on a large export it takes minutes, and somebody must say that the trainer lives.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(fit_head, config.head, data, vectors, practice, config.pairs, config.seed)
        while not future.done():
            check()
            wait([future], ALIVE_S)
    try:
        return future.result(), ""
    except (Collapsed, DataError) as error:
        return None, str(error)


def _train(
    config: TrialConfig,
    model: str,
    weights: Weights | None,
    data: Data,
    evaluate: Callable[[Encoder], Scores],
    report: Report,
    interruptions: Interruptions,
    memory: Memory,
    cache: Path | None,
) -> tuple[Encoder, TrainPairs, Fit]:
    def base_vectors(numbers: IntArray) -> NDArray[np.float32]:
        return encode(load_encoder(model, config.max_seq_tokens, data.table.texts), numbers, interruptions.check)

    mined = train_pairs(data, config, cache, base_vectors)
    encoder = load_encoder(model, config.max_seq_tokens, [*data.table.texts, *mined.altered], weights)
    incident_of = np.concatenate([np.arange(len(data.table)), mined.sources])

    def is_alike(left: IntArray, right: IntArray) -> BoolArray:
        return may_be_alike(data.table, incident_of[left], incident_of[right])

    masked = is_alike if config.mining.false_negatives == "mask" else None
    run = fit(
        encoder,
        mined,
        config.training,
        config.seed,
        lambda: evaluate(encoder),
        report,
        interruptions,
        memory,
        masked,
    )
    return encoder, mined, run


def _practise(
    config: TrialConfig,
    model: str,
    weights: Weights | None,
    data: Data,
    run: Fit,
    interruptions: Interruptions,
    memory: Memory,
) -> Practice:
    """The same training for as long as the best evaluation took, without some incidents that it has not seen then."""
    unseen, evaluations, end = unseen_incidents(data, config.pairs.seed), count(), run.best.epoch if run.best else 0.0
    others = np.setdiff1d(data.splits["train"], unseen)
    smaller = replace(data, splits={**data.splits, "train": others})

    def rising(encoder: Encoder) -> Scores:
        return {"spearman": float(next(evaluations))}  # so that the last one counts: nothing held out is looked at

    def until_then(progress: Progress) -> Verdict:
        return "go on" if progress.epoch < end else "overtaken"

    asked = Interruptions(is_asked=interruptions.is_asked)
    encoder, _, _ = _train(config, model, weights, smaller, rising, until_then, asked, memory, None)
    return Practice(encode(encoder, np.arange(len(data.table)), interruptions.check), unseen)


def rank_validation(encoder: Encoder, data: Data, check: Callable[[], None] = lambda: None) -> Ranking:
    """Every distinct incident is encoded once; similarities are cosines, shape (pairs,)."""
    pairs = data.validation
    return rank_pairs(_similarities(encoder, pairs, check), pairs.grades, data.ladder.positive)


def judge_test(
    encoder: Encoder, config: TrialConfig, cache: Path | None, check: Callable[[], None]
) -> dict[str, float | list[float | None]]:
    """Scores on test, and `replicates`: Spearman on resampled incidents, the same ones for every run on these data.

    None: a class went without weight, as it does for every run. Raises Collapsed, DataError.
    """
    data = load_data(config, cache)
    pairs = held_out_pairs(data.table, data.ladder, data.splits["test"], config.pairs)
    ranking = rank_pairs(_similarities(encoder, pairs, check), pairs.grades, data.ladder.positive)
    replicates = list[float | None]()
    for weights in islice(resampled(pairs.anchors, pairs.others, config.pairs.seed), RESAMPLES):
        check()
        with np.errstate(invalid="ignore"):
            spearman = score(ranking, weights)["spearman"]
        replicates.append(round(spearman, 6) if np.isfinite(spearman) else None)
    return {**score(ranking), "replicates": replicates}


def _similarities(encoder: Encoder, pairs: GradedPairs, check: Callable[[], None]) -> FloatArray:
    numbers, left, right = pairs.distinct()
    vectors = encode(encoder, numbers, check).astype(np.float64)
    some = (slice(start, start + PAIRS_AT_ONCE) for start in range(0, len(left), PAIRS_AT_ONCE))
    return np.concatenate([np.einsum("ij,ij->i", vectors[left[part]], vectors[right[part]]) for part in some])


def _at_hand(config: TrialConfig) -> str:
    """The model as the folder that holds it."""
    folder = fetch(config.model, config.model_revision)
    return f"{STATIC}{folder}" if config.model.startswith(STATIC) else str(folder)


def _untrained(config: TrialConfig, model: str, data: Data, check: Callable[[], None]) -> Scores:
    """The base model's scores: the same for all trials of a study, so measured once."""
    key = config.model_dump_json(exclude={"training", "mining", "pretraining", "head", "seed", "threads"})
    if key not in UNTRAINED:
        if len(UNTRAINED) == MOST_MODELS:
            UNTRAINED.clear()
        UNTRAINED[key] = score(
            rank_validation(load_encoder(model, config.max_seq_tokens, data.table.texts), data, check)
        )
    return UNTRAINED[key]
