"""Several models as one: chosen on validation, saved and loaded as any model. And models kept of trials, to be chosen.

The mean of members' cosines, weighted, is the cosine of their unit vectors in a row, each scaled by the root of its
weight: so an ensemble is one model, whose vectors any index can hold.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule

from objectives.config import TrialConfig
from objectives.device import device
from objectives.evaluation import FloatArray, rank_pairs, score
from objectives.incidents import IntArray
from objectives.model_files import ModelError, pin
from objectives.pairs import GradedPairs
from objectives.progress import Scores

GAIN = 1e-5  # of Spearman; less is rounding
OF_WHAT = "kept"  # beside a kept model: the hashes of its trial's configuration and of its files


class Concatenated(InputModule):
    """Members' unit vectors in a row, by the module protocol of sentence-transformers."""

    def __init__(self, members: Sequence[SentenceTransformer], weights: Sequence[float]) -> None:
        torch.nn.Module.__init__(self)
        self.members: Any = torch.nn.ModuleList(members)
        self.weights = list(weights)

    def preprocess(self, inputs: Any, prompt: str | None = None, **options: Any) -> dict[str, Any]:
        features = {}
        for number, member in enumerate(self.members):
            for key, value in member.preprocess(inputs, prompt=prompt, **options).items():
                features[f"{number}.{key}"] = value
        return features

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        vectors = []
        for number, (member, weight) in enumerate(zip(self.members, self.weights, strict=True)):
            prefix = f"{number}."
            own = {key.removeprefix(prefix): value for key, value in features.items() if key.startswith(prefix)}
            vectors.append(torch.nn.functional.normalize(member(own)["sentence_embedding"], dim=1) * weight**0.5)
        return features | {"sentence_embedding": torch.cat(vectors, dim=1)}

    def get_embedding_dimension(self) -> int:
        return sum(member.get_embedding_dimension() for member in self.members)

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        for number, member in enumerate(self.members):
            member.save(str(Path(output_path, f"member-{number}")), create_model_card=False)
        Path(output_path, self.config_file_name).write_text(json.dumps({"weights": self.weights}))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", *_: Any, **__: Any) -> Concatenated:
        folder = Path(model_name_or_path, subfolder)
        weights = json.loads((folder / cls.config_file_name).read_text())["weights"]
        return cls([load_model(folder / f"member-{number}") for number in range(len(weights))], weights)


def load_model(folder: Path) -> SentenceTransformer:
    """A saved model, an ensemble or not. SentenceTransformer itself takes no module of another package as trusted."""
    modules = json.loads((folder / "modules.json").read_text())
    if [module["type"] for module in modules] == [f"{Concatenated.__module__}.{Concatenated.__name__}"]:
        return SentenceTransformer(modules=[Concatenated.load(str(folder))], device=device())
    options = {"use_safetensors": True}
    return SentenceTransformer(str(folder), device=device(), trust_remote_code=False, model_kwargs=options)


def combine(members: Sequence[SentenceTransformer], weights: Sequence[float]) -> SentenceTransformer:
    """A single one stays as it is."""
    if len(members) == 1:
        return members[0]
    return SentenceTransformer(modules=[Concatenated(members, weights)], device=device())


def similarities(model: SentenceTransformer, texts: Sequence[str], pairs: GradedPairs) -> FloatArray:
    """Cosines, shape (pairs,); every distinct incident is encoded once."""
    numbers, left, right = pairs.distinct()
    vectors = unit_vectors(model, [texts[number] for number in numbers]).astype(np.float64)
    cosines: FloatArray = np.einsum("ij,ij->i", vectors[left], vectors[right])
    return cosines


def unit_vectors(model: SentenceTransformer, texts: Sequence[str]) -> Any:
    return model.encode(list(texts), batch_size=256, normalize_embeddings=True, show_progress_bar=False)


def worth(scores: Scores, floors: Mapping[str, float]) -> tuple[bool, float]:
    """By which models compare: what reaches every floor comes before what does not; then Spearman decides."""
    return all(scores[name] >= floor for name, floor in floors.items()), scores["spearman"]


def select(found: FloatArray, grades: FloatArray, positive: float, floors: Mapping[str, float]) -> IntArray:
    """How often each member counts, of similarities (members, pairs); never worth less than the best member.

    Greedy, with replacement, as long as that gains (Caruana et al. 2004).
    """
    counts, best = np.zeros(len(found), dtype=np.int64), (False, -np.inf)
    for _ in range(3 * len(found)):
        worths = [worth(score(rank_pairs(counts @ found + member, grades, positive)), floors) for member in found]
        if max(worths) <= (best[0], best[1] + GAIN):
            break
        best = max(worths)
        counts[worths.index(best)] += 1
    return counts


def keep_model(save: Callable[[Path], object], folder: Path, config: TrialConfig) -> None:
    """Whole or not at all; a full disk costs the copy, no more."""
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save(partial)
        (partial / OF_WHAT).write_bytes(_of_what(partial, config))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except Exception:  # each library has its own for a disk that is full
        shutil.rmtree(partial, ignore_errors=True)


def is_kept(folder: Path, config: TrialConfig) -> bool:
    """As it was saved, of a trial with this configuration."""
    try:
        return (folder / OF_WHAT).read_bytes() == _of_what(folder, config)
    except (OSError, ModelError):
        return False


def _of_what(folder: Path, config: TrialConfig) -> bytes:
    trial = config.model_dump_json(exclude={"incidents": {"path", "dataset"}})
    return f"{hashlib.sha256(trial.encode()).hexdigest()} {pin(str(folder.absolute()))}".encode()
