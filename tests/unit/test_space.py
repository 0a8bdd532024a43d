"""A declared space becomes Optuna's suggestions, within bounds and under its conditions; so do the presets."""

import json
from collections.abc import Iterator
from functools import cache
from itertools import product

import optuna
import pytest
from optuna.samplers import RandomSampler
from pydantic import TypeAdapter, ValidationError

from hpo.config import Budget, StudyFile, baselines, searched, settings, trial_config
from hpo.spaces import FOLDER, PRESETS, preset_parameters, read_space
from hpo.yamlfile import Place
from objectives.config import Incidents
from search_spaces.space import (
    Choice,
    FloatRange,
    IntRange,
    Parameter,
    Space,
    Values,
    When,
    edges,
    is_finite,
    points,
    split,
    suggest,
)

SPACE: Space = {
    "learning_rate": FloatRange(type="float", low=1e-4, high=1e-2, log=True),
    "warmup_ratio": FloatRange(type="float", low=0.0, high=0.3),
    "batch_size": IntRange(type="int", low=16, high=64, log=True),
    "patience": Choice(type="categorical", choices=("off", 2, 3)),
}
MODELS = ["static:x", "x"]


@cache
def preset_space(preset: str, model: str) -> dict[str, Parameter]:
    return preset_parameters(preset, [model])


def choice(*choices: str | int, when: When | None = None) -> Choice:
    return Choice(type="categorical", choices=choices, when=when or {})


def whole(low: int, high: int, step: int | None = None, when: When | None = None) -> IntRange:
    return IntRange(type="int", low=low, high=high, step=step, when=when or {})


# A chain: a is there when `top` is on, b when a is 2, c when `top` is on or half and a is 2 or 3.
CHAIN: Space = {
    "top": choice("off", "half", "on"),
    "a": choice(1, 2, 3, when={"top": ("on", "half")}),
    "b": whole(0, 1, when={"a": (2,)}),
    "c": whole(0, 4, step=2, when={"top": ("on",), "a": (2, 3)}),
}


def expected(values: Values) -> set[str]:
    """What is there in CHAIN, said a second time."""
    there = {"top"}
    if values["top"] != "off":
        there.add("a")
        there |= {"b"} if values["a"] == 2 else set()
        there |= {"c"} if values["top"] == "on" and values["a"] in (2, 3) else set()
    return there


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


def test_a_logarithmic_range_is_drawn_by_magnitude(study: optuna.Study) -> None:
    """Half of the values lie in the lower half of the magnitudes, which is the lowest tenth of the values."""
    low = [float(suggest(SPACE, study.ask())["learning_rate"]) < 1e-3 for _ in range(200)]
    assert 70 < sum(low) < 130


def test_only_steps_are_drawn(study: optuna.Study) -> None:
    space: Space = {
        "epochs": whole(1, 10, step=3),
        "warmup_ratio": FloatRange(type="float", low=0.1, high=0.2, step=0.05),
    }
    drawn = [suggest(space, study.ask()) for _ in range(60)]
    assert {values["epochs"] for values in drawn} == {1, 4, 7, 10}
    assert sorted({float(values["warmup_ratio"]) for values in drawn}) == pytest.approx([0.1, 0.15, 0.2])


def test_a_baseline_outside_the_bounds_is_recorded_unclipped_and_optuna_warns(study: optuna.Study) -> None:
    v4 = {"learning_rate": 1e-5, "warmup_ratio": 0.1, "batch_size": 8, "patience": 3}
    study.enqueue_trial(v4)
    with pytest.warns(UserWarning, match="is out of range") as warned:
        values = suggest(SPACE, trial := study.ask())
    study.tell(trial, 0.5)
    assert values == v4 == study.trials[0].params
    assert len(warned) == 2


def test_a_parameter_is_suggested_exactly_when_its_condition_holds_also_through_a_chain(study: optuna.Study) -> None:
    drawn = [suggest(CHAIN, study.ask()) for _ in range(300)]
    assert [set(values) for values in drawn] == [expected(values) for values in drawn]
    assert {key for values in drawn for key in values} == CHAIN.keys()
    assert {key: trial.params for key, trial in enumerate(study.trials)} == dict(enumerate(drawn))


@pytest.mark.parametrize(
    ("top", "left"),
    [("off", set()), ("half", {"a", "b"}), ("on", {"a", "b", "c"})],
)
def test_a_fixed_parent_decides_what_is_searched(study: optuna.Study, top: str, left: set[str]) -> None:
    space, fixed = split({**CHAIN, "top": top})
    assert set(space) == left
    assert fixed == {"top": top}
    for values in [suggest(space, study.ask()) for _ in range(60)]:
        assert set(values) | {"top"} == expected(values | fixed)


def test_of_a_condition_that_a_fixed_value_meets_only_the_rest_is_left() -> None:
    space, fixed = split({**CHAIN, "a": 3})
    assert fixed == {"a": 3}
    assert space == {"top": CHAIN["top"], "c": whole(0, 4, step=2, when={"top": ("on",)})}


def test_points_are_those_of_a_grid() -> None:
    space: Space = {"epochs": whole(1, 5, step=2), "schedule": choice("linear", "cosine"), "batch_size": whole(8, 9)}
    names = ("epochs", "schedule", "batch_size")
    grid = product((1, 3, 5), ("linear", "cosine"), (8, 9))
    assert list(points(space)) == [dict(zip(names, values, strict=True)) for values in grid]


def test_points_of_a_conditional_space_are_each_there_once() -> None:
    found = list(points(CHAIN))
    assert all(set(values) == expected(values) for values in found)
    assert len({json.dumps(values) for values in found}) == len(found)
    # off; half with a of 1 or 3, and of 2 with b; on with 1; on with 2, b and c; on with 3 and c.
    assert len(found) == 1 + (2 + 2) + (1 + 2 * 3 + 3)


def test_points_are_what_can_be_drawn(study: optuna.Study) -> None:
    space: Space = CHAIN | {"scale": FloatRange(type="float", low=2.0, high=3.0, step=0.5, when={"top": ("off",)})}
    drawn = {json.dumps(suggest(space, study.ask())) for _ in range(400)}
    assert drawn == {json.dumps(values) for values in points(space)}


def test_steps_of_decimals_end_at_the_bound_as_what_is_drawn_does(study: optuna.Study) -> None:
    space: Space = {"warmup_ratio": FloatRange(type="float", low=0.0, high=0.3, step=0.1)}
    drawn = {json.dumps(suggest(space, study.ask())) for _ in range(60)}
    assert drawn == {json.dumps(values) for values in points(space)}


def test_a_condition_that_an_own_choice_leaves_no_value_for_is_never_met() -> None:
    space, _ = split({**CHAIN, "top": choice("off", "half")})
    assert space == {"top": choice("off", "half"), "a": choice(1, 2, 3, when={"top": ("half",)}), "b": CHAIN["b"]}


def test_only_a_space_of_choices_whole_numbers_and_steps_is_finite() -> None:
    assert is_finite(CHAIN | {"scale": FloatRange(type="float", low=2.0, high=3.0, step=0.5)})
    assert not is_finite(CHAIN | {"scale": FloatRange(type="float", low=2.0, high=3.0)})


@pytest.mark.parametrize(
    ("parameter", "complaint"),
    [
        ({"type": "float", "low": 1.0, "high": 1.0}, "must be below high"),
        ({"type": "int", "low": 0, "high": 3, "log": True}, "must start above 0"),
        ({"type": "int", "low": 1, "high": 2.5}, "valid integer"),
        ({"type": "categorical", "choices": ["off"]}, "at least 2"),
        ({"type": "categorical", "choices": [2, 3, 2]}, "must differ"),
        ({"type": "float", "low": 0.0, "high": 1.0, "step": 0.3}, "do not lead from 0.0 to 1.0"),
        ({"type": "float", "low": 0.1, "high": 1.0, "step": 0.1, "log": True}, "not both"),
        ({"type": "float", "low": 0.0, "high": 1.0, "q": 0.1}, "Extra inputs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_range_that_is_none_is_refused(parameter: dict[str, object], complaint: str) -> None:
    adapter: TypeAdapter[Parameter] = TypeAdapter(Parameter)
    with pytest.raises(ValidationError, match=complaint):
        adapter.validate_python(parameter)


@pytest.mark.parametrize("step", [0.1, 0.05, 0.01, 0.025])
def test_steps_that_lead_there_but_for_rounding_are_accepted(step: float) -> None:
    FloatRange(type="float", low=0.0, high=0.3, step=step)
    FloatRange(type="float", low=0.1, high=0.9, step=step)


def study_of(preset: str, model: str) -> StudyFile:
    """As read_study_file makes it, but for the incidents."""
    file = StudyFile(name="s", incidents=Incidents(path="i.csv"), budget=Budget(trials=9), model=model, space=preset)
    place = Place(FOLDER / "recipes.yaml")
    return read_space(file, place, place)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_edge_and_every_baseline_of_a_preset_trains(preset: str, model: str) -> None:
    file = study_of(preset, model)
    assert searched(file) == preset_space(preset, model)
    assert set(baselines(file)) == {"v4", "hand_set"}
    for values in [*(values for _, values in edges(searched(file))), *baselines(file).values()]:
        config = trial_config(file, values)
        assert settings(config).items() >= values.items()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_drawn_from_a_preset_trains(study: optuna.Study, preset: str, model: str) -> None:
    space = split(preset_space(preset, model))[0]
    file = StudyFile(name="s", incidents=Incidents(path="i.csv"), budget=Budget(trials=9), model=model)
    for _ in range(30):
        trial_config(file, suggest(space, study.ask()))


@pytest.mark.parametrize("model", MODELS)
def test_the_full_preset_has_all_of_the_others_with_the_bounds_of_the_first(model: str) -> None:
    last, second, first = (preset_space(name, model) for name in ("advanced", "data", "quick_wins"))
    assert preset_space("full", model) == last | second | first


def test_every_bound_of_a_preset_has_its_reason_above_it_where_it_stands_first() -> None:
    for kind in ("static", "transformer"):
        seen = set[str]()
        for name in PRESETS["full"]:
            section, has_reason = "", False
            for line in (FOLDER / f"{name}.yaml").read_text().splitlines():
                section = section if line.startswith(" ") else line.rstrip(":")
                parameter = line.split(":")[0].strip()
                if section in (kind, "both") and line.startswith("  ") and not parameter.startswith("#"):
                    assert has_reason or parameter in seen, f"{name}.yaml: {parameter} for {kind}"
                    seen.add(parameter)
                has_reason = parameter.startswith("#")
