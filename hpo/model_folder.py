"""A model's folder as `hpo train` and `hpo ensemble` leave it: the model, and how it is to be used."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from hpo.errors import InputError
from hpo.files import write_text
from hpo.yamlfile import read_yaml, write_yaml
from objectives.config import STRICT, Incidents

FACTS = "incident_model.yaml"
COMMENT = "How this model's texts were read, and from which similarity on two of them are a match."


class ModelFacts(BaseModel):
    model_config = STRICT
    schema_version: Literal[1] = 1
    incidents: Incidents  # as they were read
    threshold: float  # cosine similarity of the best F1 on validation
    head: bool = False  # a match head lies beside, which decides in place of the threshold


def write_facts(folder: Path, facts: ModelFacts) -> None:
    write_text(folder / FACTS, write_yaml(facts.model_dump(mode="json"), COMMENT))


def read_facts(folder: Path) -> ModelFacts:
    """Raises InputError for a folder that is none of ours."""
    if not (folder / FACTS).is_file():
        raise InputError(f"{folder}: no {FACTS} in it; give a folder that `hpo train` or `hpo ensemble` made")
    return read_yaml(folder / FACTS, ModelFacts)
