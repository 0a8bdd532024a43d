"""Stages before fine-tuning: a transformer learns from the training incidents' texts alone, without labels.

The result is kept by the hash of all that it follows from, so that it is made once on a box, whatever the number of
trials and workers.
"""

from __future__ import annotations

import fcntl
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss
from sentence_transformers.util import batch_to_device
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling, get_scheduler
from transformers.utils import logging

from objectives.cache import cached, place
from objectives.config import Pretraining, TrialConfig
from objectives.data import Data
from objectives.device import device, resolved
from objectives.incidents import cache_key
from objectives.models import Weights, base_model, is_static
from objectives.progress import Diverged, Unsuitable

STAGER = 1  # to be raised when a stage comes out otherwise: what boxes have kept is then made anew
MASKED = 0.15  # of the tokens: Devlin et al. 2018, arXiv:1810.04805
DELETED = 0.6  # of the words: Wang et al. 2021, arXiv:2104.06979
WARMUP = 0.1
POLL_S = 0.2

StageLoss = Callable[[list[str], np.random.Generator], torch.Tensor]  # of a batch of texts


def stage_weights(
    config: TrialConfig, model: str, data: Data, check: Callable[[], None], cache: Path | None
) -> Weights | None:
    """Of the model (a folder) after its stage; None without one. Raises Unsuitable, Diverged, and what `check` does."""
    if config.pretraining.stage == "off":
        return None
    if is_static(model):
        raise Unsuitable(f"stage {config.pretraining.stage} is for transformers; {config.model!r} is a static model")
    parts = {"max_seq_tokens", "model", "model_revision", "pretraining", "splits", "labels", "threads"}
    decided_by = config.model_dump(mode="json", include=parts)
    key = [STAGER, cache_key(config.incidents), decided_by, config.pairs.seed]
    folder = cache if config.incidents.sha256 else None

    def make() -> bytes:
        texts = [data.table.texts[number] for number in data.splits["train"]]
        return safetensors.torch.save(_run(config, base_model(model), texts, check))

    with _alone(folder, key, check):
        return safetensors.torch.load(cached(folder, "stage", key, make))


@contextmanager
def _alone(folder: Path | None, key: Any, check: Callable[[], None]) -> Iterator[None]:
    """Whoever comes second on this box waits for the first, and finds its result."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with place(folder, "lock", key).open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                check()
                time.sleep(POLL_S)
        yield


def _run(config: TrialConfig, model: SentenceTransformer, texts: list[str], check: Callable[[], None]) -> Weights:
    stage, seed = config.pretraining, config.pairs.seed
    torch.manual_seed(seed)
    model.to(device()).train()
    model.max_seq_length = min(config.max_seq_tokens, model.max_seq_length or config.max_seq_tokens)
    module, loss_of = (_masked_language if stage.stage == "mlm" else _denoising)(model, seed)
    precision = resolved("auto", model)
    optimizer, schedule, rng = *_optimizer(module.to(device()).train(), stage, len(texts)), np.random.default_rng(seed)
    for _ in range(stage.stage_epochs):
        order = rng.permutation(len(texts))
        for start in range(0, len(texts), stage.stage_batch_size):
            check()
            batch = [texts[number] for number in order[start : start + stage.stage_batch_size]]
            with torch.autocast(device(), torch.bfloat16, enabled=precision == "bfloat16"):
                loss = loss_of(batch, rng)
            if not torch.isfinite(loss):
                raise Diverged(f"the loss of stage {stage.stage} is {loss.item()}")
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _optimizer(module: torch.nn.Module, stage: Pretraining, texts: int) -> tuple[torch.optim.Optimizer, Any]:
    steps = stage.stage_epochs * math.ceil(texts / stage.stage_batch_size)
    optimizer = torch.optim.AdamW(module.parameters(), stage.stage_learning_rate, fused=True)
    warmup_steps = math.ceil(WARMUP * steps)
    return optimizer, get_scheduler("linear", optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps)


def _masked_language(model: SentenceTransformer, seed: int) -> tuple[torch.nn.Module, StageLoss]:
    """A sentence model has no head that names words: a fresh one learns along, on the model's own token vectors."""
    encoder: Any = model.transformers_model
    tokenizer = model.tokenizer
    try:
        language: Any = AutoModelForMaskedLM.from_config(encoder.config)  # type: ignore[no-untyped-call]
    except ValueError:
        raise Unsuitable(f"transformers knows no masked language model for {type(encoder).__name__}") from None
    setattr(language, language.base_model_prefix, encoder)
    language.tie_weights()
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED, seed=seed)

    def loss(texts: list[str], rng: np.random.Generator) -> torch.Tensor:
        tokens = tokenizer(texts, truncation=True, max_length=model.max_seq_length, return_special_tokens_mask=True)
        rows = [{name: values[row] for name, values in tokens.items()} for row in range(len(texts))]
        found: torch.Tensor = language(**collate(rows).to(device())).loss
        return found

    return language, loss


def _denoising(model: SentenceTransformer, seed: int) -> tuple[torch.nn.Module, StageLoss]:
    """TSDAE: a decoder has to restore a text from the vector of what is left of it."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # that a decoder has weights which an encoder lacks is no news
    try:
        module = DenoisingAutoEncoderLoss(model)
    except ValueError:
        raise Unsuitable(f"transformers knows no decoder for {type(model.transformers_model).__name__}") from None

    def loss(texts: list[str], rng: np.random.Generator) -> torch.Tensor:
        damaged = [_with_words_deleted(text, rng) for text in texts]
        features = [batch_to_device(model.preprocess(each), torch.device(device())) for each in (damaged, texts)]
        found: torch.Tensor = module(features, torch.empty(0))
        return found

    return module, loss


def _with_words_deleted(text: str, rng: np.random.Generator) -> str:
    words = text.split()
    kept = [word for word, drawn in zip(words, rng.random(len(words)), strict=True) if drawn > DELETED]
    return " ".join(kept or [words[rng.integers(len(words))]])
