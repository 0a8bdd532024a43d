"""One optimizer step after another, none of which may leave the finite numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.losses.gradcache import RandContext
from transformers import get_scheduler

from objectives.config import Memory, Training
from objectives.device import resolved, train_in_bfloat16
from objectives.incidents import IntArray
from objectives.losses import CACHED_BATCH, Term
from objectives.models import Encoder
from objectives.progress import Diverged

Vectors = Callable[[IntArray], torch.Tensor]  # of numbers of texts, (texts, dimensions)


class Optimization:
    """Model, losses, optimizer and learning-rate schedule of one run of `steps` steps."""

    def __init__(self, encoder: Encoder, terms: list[Term], config: Training, steps: int, memory: Memory) -> None:
        self.encoder, self._terms = encoder, terms
        self._max_grad_norm = config.max_grad_norm
        self._micro_batch = memory.micro_batch or (
            CACHED_BATCH if "cached_mnrl" in (config.loss, config.second_loss) else None
        )
        if resolved(config.precision, encoder.model) == "bfloat16":
            train_in_bfloat16(encoder.model)
        if memory.gradient_checkpointing:
            _checkpoint_activations(encoder)
        self._parameters = [parameter for parameter in encoder.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        warmup_steps = math.ceil(config.warmup_ratio * steps)
        self.scheduler = get_scheduler(
            config.schedule, self.optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps
        )

    def step(self, rows: list[IntArray]) -> None:
        """On rows of each term. Raises Diverged, the weights as they were before."""
        self.encoder.model.train()
        texts = np.unique(np.concatenate([term.ends[own].ravel() for term, own in zip(self._terms, rows, strict=True)]))
        if self._micro_batch is None:
            self._backward(rows, texts, self.encoder.vectors(texts))
        else:
            self._backward_in_parts(rows, texts, self._micro_batch)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        if not torch.isfinite(norm):
            raise Diverged(f"the gradients' norm is {norm.item()}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()

    def _loss(self, rows: list[IntArray], texts: IntArray, vectors: torch.Tensor) -> torch.Tensor:
        def of(numbers: IntArray) -> torch.Tensor:
            return vectors[torch.from_numpy(np.searchsorted(texts, numbers)).to(vectors.device)]

        loss = sum(term(own, of) for term, own in zip(self._terms, rows, strict=True))
        assert isinstance(loss, torch.Tensor)
        return loss

    def _backward(self, rows: list[IntArray], texts: IntArray, vectors: torch.Tensor) -> None:
        loss = self._loss(rows, texts, vectors)
        if not torch.isfinite(loss):
            raise Diverged(f"the loss is {loss.item()}")
        torch.autograd.backward(loss)

    def _backward_in_parts(self, rows: list[IntArray], texts: IntArray, size: int) -> None:
        """Gradients of the vectors first, all of them at hand; then each part is encoded again and hands them down.

        Memory is that of one part, and every pair still sees the whole batch: Gao et al. 2021, arXiv:2101.06983.
        """
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        states, found = [], []
        with torch.no_grad():
            for part in parts:
                states.append(RandContext(*self.encoder.model.parameters()))
                found.append(self.encoder.vectors(part))
        vectors = torch.cat(found).requires_grad_()
        self._backward(rows, texts, vectors)
        assert vectors.grad is not None
        for part, state, gradient in zip(parts, states, torch.split(vectors.grad, size), strict=True):
            with state:
                again = self.encoder.vectors(part)
            torch.autograd.backward(again, gradient)


def _checkpoint_activations(encoder: Encoder) -> None:
    first: Any = encoder.model[0]
    model = first.auto_model
    # Renamed in transformers 5; the old name goes with 6.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
