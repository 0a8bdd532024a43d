"""Where training computes, and in which precision."""

from __future__ import annotations

import os
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from objectives.config import Precision


class DeviceError(Exception):
    """The device that was asked for is not there."""

    exit_code = 78


@lru_cache(maxsize=1)
def device() -> str:
    """'cuda' or 'cpu'. Raises DeviceError rather than train on a CPU where a GPU was meant."""
    if torch.cuda.is_available():
        return "cuda"
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None and any(Path("/dev").glob("nvidia[0-9]*")):
        asked = "not set"
    if asked not in (None, "", "-1"):
        raise DeviceError(
            f"CUDA_VISIBLE_DEVICES is {asked}, but torch {torch.__version__} finds no such GPU; "
            "mend the driver, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    return "cpu"


def device_name() -> str:
    return torch.cuda.get_device_name() if device() == "cuda" else "cpu"


def is_deterministic() -> bool:
    """On a CPU the same trial gives the same bits; on a GPU some sums depend on the order in which threads end."""
    return device() == "cpu" or torch.are_deterministic_algorithms_enabled()


def resolved(precision: Precision, model: SentenceTransformer) -> Literal["float32", "bfloat16"]:
    """What `auto` means here. A static model's sums of token vectors are float32 always."""
    if isinstance(model[0], StaticEmbedding):
        return "float32"
    if precision != "auto":
        return precision
    has_bfloat16 = device() == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bfloat16 else "float32"


def train_in_bfloat16(model: SentenceTransformer) -> None:
    """While it trains, the model alone is computed so, by autocast: weights, vectors and losses stay float32.

    Wrapped around forward(), so that what recomputes vectors inside backward() computes the same ones. Evaluations
    are float32, as whoever loads the saved model will compute.
    """
    forward = model.forward

    @wraps(forward)
    def cast(*arguments: Any, **named: Any) -> dict[str, Any]:
        with torch.autocast(device(), torch.bfloat16, enabled=model.training):
            features: dict[str, Any] = forward(*arguments, **named)
        return features | {"sentence_embedding": features["sentence_embedding"].float()}

    model.forward = cast  # type: ignore[method-assign]
