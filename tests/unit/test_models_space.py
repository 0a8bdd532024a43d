"""Base models as a parameter: several of a kind or of two, each kind with bounds of its own."""

import re
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, create_trial

from hpo.config import Budget, StudyFile, baselines, field_of, models, searched, settings, trial_config
from hpo.errors import InputError
from hpo.pruning import curve_of, untrained_of
from hpo.space_view import show
from hpo.spaces import read_space
from hpo.yamlfile import Place, read_yaml
from objectives.config import Incidents
from search_spaces.space import Choice, FloatRange, suggest

STATIC, SMALL, LARGE = "static:small", "small", "large"
HEAD = "name: s\nincidents: {path: i.csv}\nbudget: {trials: 9}\n"


def read(folder: Path, text: str) -> StudyFile:
    path = folder / "study.yaml"
    path.write_text(HEAD + text)
    return read_space(read_yaml(path, StudyFile), Place(path), Place(path).below("space"))


def space_of(*names: str, preset: str = "quick_wins", more: str = "") -> str:
    model = f"model: {{type: categorical, choices: [{', '.join(names)}]}}"
    return f"space:\n  preset: {preset}\n  parameters:\n    {model}\n{more}"


def test_models_of_one_kind_share_their_bounds(tmp_path: Path) -> None:
    file = read(tmp_path, space_of(SMALL, LARGE))
    alone = read(tmp_path, f"model: {SMALL}\nspace: quick_wins\n")
    assert models(file) == (SMALL, LARGE)
    assert {name: found for name, found in searched(file).items() if name != "model"} == searched(alone)


def test_models_of_two_kinds_have_bounds_of_their_own(tmp_path: Path) -> None:
    space = searched(read(tmp_path, space_of(STATIC, SMALL, LARGE)))
    static, transformer = space["learning_rate@static"], space["learning_rate@transformer"]
    assert isinstance(static, FloatRange)
    assert isinstance(transformer, FloatRange)
    assert transformer.high < static.high
    assert static.when["model"] == (STATIC,)
    assert transformer.when["model"] == (SMALL, LARGE)
    assert "learning_rate" not in space


@pytest.mark.parametrize("preset", ["quick_wins", "data", "advanced", "full"])
def test_what_is_drawn_sets_the_learning_rate_of_its_model(tmp_path: Path, preset: str) -> None:
    file = read(tmp_path, space_of(STATIC, SMALL, preset=preset))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    kinds = set()
    for _ in range(40):
        values = suggest(searched(file), study.ask())
        config = trial_config(file, values)
        kind = "static" if config.model == STATIC else "transformer"
        kinds.add(kind)
        assert config.training.learning_rate == values[f"learning_rate@{kind}"]
        assert settings(config).items() >= {field_of(name): value for name, value in values.items()}.items()
        assert config.pretraining.stage == "off" or kind == "transformer"
    assert kinds == {"static", "transformer"}


def test_own_bounds_count_for_every_kind(tmp_path: Path) -> None:
    own = "    learning_rate: {type: float, low: 1.0e-4, high: 1.0e-3, log: true}\n"
    space = searched(read(tmp_path, space_of(STATIC, SMALL, more=own)))
    assert [name for name in space if field_of(name) == "learning_rate"] == ["learning_rate"]


def test_bounds_of_one_kind_can_be_given(tmp_path: Path) -> None:
    own = (
        "    learning_rate@static:\n"
        f"      {{type: float, low: 1.0e-4, high: 1.0e-3, log: true, when: {{model: '{STATIC}'}}}}\n"
    )
    space = searched(read(tmp_path, space_of(STATIC, SMALL, more=own)))
    assert space["learning_rate@static"].model_dump()["high"] == 1e-3
    assert space["learning_rate@transformer"].model_dump()["high"] == 2e-4


def test_the_recipes_of_each_kind_run_first(tmp_path: Path) -> None:
    found = baselines(read(tmp_path, space_of(STATIC, LARGE, SMALL)))
    assert set(found) == {"v4.static", "hand_set.static", "v4.transformer", "hand_set.transformer"}
    assert [found[f"hand_set.{kind}"]["model"] for kind in ("static", "transformer")] == [STATIC, LARGE]


def test_a_model_that_is_set_and_searched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"study\.yaml:4: model is in the space, too"):
        read(tmp_path, "model: small\n" + space_of(STATIC, SMALL))


def test_a_stage_without_a_condition_is_refused_beside_a_static_model(tmp_path: Path) -> None:
    stage = "    stage: {type: categorical, choices: ['off', mlm]}\n"
    with pytest.raises(InputError, match=r"study\.yaml:8: stage mlm is for transformers, not for static:small"):
        read(tmp_path, space_of(STATIC, SMALL, more=stage))


def test_a_stage_of_the_transformers_alone_is_taken(tmp_path: Path) -> None:
    stage = "    stage: {type: categorical, choices: ['off', mlm], when: {model: small}}\n"
    assert "stage" in searched(read(tmp_path, space_of(STATIC, SMALL, more=stage)))


def test_folders_of_models_are_named_from_where_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    more = "    stage: {type: categorical, choices: ['off', mlm], when: {model: mine}}\n"
    file = read(tmp_path, space_of("mine", SMALL, more=more))
    assert models(file) == (str(tmp_path / "mine"), SMALL)
    stage = searched(file)["stage"]
    assert isinstance(stage, Choice)
    assert stage.when["model"] == (str(tmp_path / "mine"),)


def test_the_length_of_texts_can_be_searched(tmp_path: Path) -> None:
    file = read(tmp_path, "space: {parameters: {max_seq_tokens: {type: int, low: 32, high: 256, log: true}}}\n")
    assert trial_config(file, {"max_seq_tokens": 64}).max_seq_tokens == 64


def test_each_trial_has_the_version_of_its_own_model() -> None:
    file = StudyFile(
        name="s",
        incidents=Incidents(path="i.csv"),
        budget=Budget(trials=9),
        model=SMALL,
        model_revision={SMALL: "small==1", LARGE: "large==2"},
    )
    assert trial_config(file, {"model": LARGE}).model_revision == "large==2"
    assert trial_config(file).model_revision == "small==1"


RANGE = "{type: float, low: 1.0e-4, high: 1.0e-3, log: true}"
WRONG = [
    ("learning_rate@foo", RANGE, "no base model is of kind 'foo' here; kinds: static, transformer"),
    ("learning_rate@", RANGE, "no base model is of kind '' here"),
    ("learning_rate@static", "0.01", "learning_rate@static is fixed for one kind of models alone"),
]


@pytest.mark.parametrize(("name", "value", "words"), WRONG)
@pytest.mark.parametrize("preset", ["preset: quick_wins\n  ", ""])
def test_what_is_of_no_kind_or_fixed_for_one_is_refused(
    tmp_path: Path, preset: str, name: str, value: str, words: str
) -> None:
    model = f"model: {{type: categorical, choices: ['{STATIC}', {SMALL}]}}"
    text = f"space:\n  {preset}parameters:\n    {model}\n    {name}: {value}\n"
    line = 8 if preset else 7
    with pytest.raises(InputError, match=rf"study\.yaml:{line}: .*{re.escape(words)}"):
        read(tmp_path, text)


def test_a_parameter_for_all_and_one_for_a_kind_do_not_go_together(tmp_path: Path) -> None:
    more = f"    learning_rate: {RANGE}\n    learning_rate@static: {RANGE}\n"
    with pytest.raises(InputError, match=r"study\.yaml:9: learning_rate@static stands beside learning_rate"):
        read(tmp_path, space_of(STATIC, SMALL, more=more))


def test_own_bounds_of_a_kind_hang_on_its_models_without_a_word(tmp_path: Path) -> None:
    space = searched(read(tmp_path, space_of(STATIC, SMALL, more=f"    learning_rate@static: {RANGE}\n")))
    assert space["learning_rate@static"].when == {"model": (STATIC,)}


@pytest.mark.parametrize("name", ["''", "'static:'", "3"])
def test_what_is_no_name_of_a_model_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"study\.yaml:7: a model is the name of one, or a folder"):
        read(tmp_path, space_of(SMALL, name))


def test_a_revision_of_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"study\.yaml:4: no base model 'smal'; there are small, large"):
        read(tmp_path, "model_revision: {smal: x}\n" + space_of(SMALL, LARGE))


def test_each_base_model_begins_its_curves_with_its_own_untrained_score() -> None:
    def ended(number: int, model: str, untrained: float) -> FrozenTrial:
        found = {"untrained": {"spearman": untrained}}
        choice = CategoricalDistribution((STATIC, SMALL))
        return create_trial(
            value=0.5,
            params={"model": model},
            distributions={"model": choice},
            user_attrs=found,
            intermediate_values={10: 0.4},
        )

    trials = [ended(0, STATIC, 0.1), ended(1, SMALL, 0.2)]
    curves = [curve_of(trial, untrained_of(trials)) for trial in trials]
    assert [curve.spearman[0] for curve in curves] == [0.1, 0.2]


def test_a_study_that_searches_the_model_is_shown(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(HEAD + space_of(STATIC, SMALL))
    assert "learning_rate@static" in show(str(tmp_path / "study.yaml"), None)
