"""A declared space becomes Optuna's suggestions, within bounds, and baselines are recorded as they are."""

from collections.abc import Iterator

import optuna
import pytest
from optuna.samplers import RandomSampler
from pydantic import TypeAdapter
from pydantic import ValidationError

from search_spaces.space import Choice
from search_spaces.space import FloatRange
from search_spaces.space import IntRange
from search_spaces.space import Parameter
from search_spaces.space import Space
from search_spaces.space import SpaceWithBaselines
from search_spaces.space import suggest

SPACE: Space = {
    "learning_rate": FloatRange(type="float", low=1e-4, high=1e-2, log=True),
    "warmup_ratio": FloatRange(type="float", low=0.0, high=0.3),
    "batch_size": IntRange(type="int", low=16, high=64, log=True),
    "patience": Choice(type="categorical", choices=("off", 2, 3)),
}


@pytest.fixture
def study() -> Iterator[optuna.Study]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield optuna.create_study(sampler=RandomSampler(seed=0), direction="maximize")
    optuna.logging.set_verbosity(optuna.logging.INFO)


def test_every_parameter_is_suggested_within_its_bounds_and_stored(study: optuna.Study) -> None:
    for _ in range(50):
        values = suggest(SPACE, trial := study.ask())
        assert values == trial.params
        assert 1e-4 <= float(values["learning_rate"]) <= 1e-2
        assert 0 <= float(values["warmup_ratio"]) <= 0.3
        assert values["batch_size"] in range(16, 65)
        assert values["patience"] in ("off", 2, 3)


def test_numbers_among_choices_stay_numbers(study: optuna.Study) -> None:
    drawn = {suggest(SPACE, study.ask())["patience"] for _ in range(30)}
    assert {type(value) for value in drawn} == {str, int}


def test_a_baseline_outside_the_bounds_is_recorded_unclipped_and_optuna_warns(study: optuna.Study) -> None:
    v4 = {"learning_rate": 1e-5, "warmup_ratio": 0.1, "batch_size": 8, "patience": 3}
    study.enqueue_trial(v4)
    with pytest.warns(UserWarning, match="is out of range") as warned:
        values = suggest(SPACE, trial := study.ask())
    study.tell(trial, 0.5)
    assert values == v4 == study.trials[0].params
    assert len(warned) == 2


@pytest.mark.parametrize(
    ("parameter", "complaint"),
    [
        ({"type": "float", "low": 1.0, "high": 1.0}, "must be below high"),
        ({"type": "int", "low": 0, "high": 3, "log": True}, "must start above 0"),
        ({"type": "int", "low": 1, "high": 2.5}, "valid integer"),
        ({"type": "categorical", "choices": ["off"]}, "at least 2"),
        ({"type": "categorical", "choices": [2, 3, 2]}, "must differ"),
        ({"type": "float", "low": 0.0, "high": 1.0, "step": 0.1}, "Extra inputs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_range_that_is_none_is_refused(parameter: dict[str, object], complaint: str) -> None:
    adapter: TypeAdapter[Parameter] = TypeAdapter(Parameter)
    with pytest.raises(ValidationError, match=complaint):
        adapter.validate_python(parameter)


@pytest.mark.parametrize(
    ("baseline", "complaint"),
    [
        ({"patience": 4}, "patience is 4, not one of"),
        ({"patience": 2, "epochs": 3}, "exactly the parameters of the space; check epochs"),
        ({}, "exactly the parameters of the space; check patience"),
    ],
    ids=["no choice", "too much", "too little"],
)
def test_a_baseline_that_does_not_fit_the_space_is_refused(baseline: dict[str, str | int], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        SpaceWithBaselines.model_validate({"parameters": {"patience": SPACE["patience"]}, "baselines": {"b": baseline}})
