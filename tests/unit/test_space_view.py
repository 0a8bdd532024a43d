"""What `hpo space` prints is read back: a space as a space, points as baselines."""

from pathlib import Path
from textwrap import indent

import pytest

from hpo.config import StudyFile, baselines, searched
from hpo.errors import InputError
from hpo.space_view import sample, show
from hpo.spaces import PRESETS, preset_parameters
from hpo.study_file import read_study_file
from search_spaces.space import FloatRange, IntRange

MODELS = ["static:x", "x"]
HEAD = "name: s\nincidents: {path: i.csv}\nbudget: {trials: 99}\n"
OWN = """
  preset: data
  parameters:
    hard_negatives: {type: categorical, choices: ["off", tfidf, jaccard, model]}
    warmup_ratio: {type: float, low: 0.0, high: 0.3, step: 0.1}
    learning_rate: {type: float, low: 1e-7, high: 1e-3, log: true}
    patience: {type: categorical, choices: ["off", 3]}
    min_epochs: {type: float, low: 0.0, high: 1.0, when: {patience: 3, hard_negatives: [tfidf, model]}}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A study with a space of its own, conditions and steps in it."""
    path = tmp_path / "own.yaml"
    (tmp_path / "i.csv").write_text("number\n1\n")
    path.write_text(f"{HEAD}space:{OWN}")
    return path


def read(folder: Path, text: str, model: str) -> StudyFile:
    path = folder / "study.yaml"
    (folder / "i.csv").write_text("number\n1\n")
    path.write_text(f"{HEAD}model: {model}\n{text}")
    return read_study_file(path)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_that_is_shown_is_the_same_space_in_a_study_file(tmp_path: Path, preset: str, model: str) -> None:
    shown = show(preset, model)
    assert searched(read(tmp_path, f"space:\n{indent(shown, '  ')}\n", model)) == preset_parameters(preset, [model])


def test_a_space_of_a_study_that_is_shown_is_the_same_in_another(tmp_path: Path, own: Path) -> None:
    file = read(tmp_path, f"space:\n{indent(show(str(own), None), '  ')}\n", "static:x")
    assert searched(file) == searched(read_study_file(own))
    assert list(searched(file)) == list(searched(read_study_file(own)))  # conditions look up


def test_what_is_shown_is_a_file_of_its_own_as_it_stands(tmp_path: Path, own: Path) -> None:
    (tmp_path / "mine.yaml").write_text(show(str(own), None))
    assert searched(read(tmp_path, "space: mine.yaml\n", "static:x")) == searched(read_study_file(own))


def test_a_preset_is_shown_with_the_reasons_that_stand_in_it() -> None:
    lines = show("quick_wins", "x").splitlines()
    assert (
        "  # Published recipes lie between 1e-5 and 1e-4; beyond 2e-4 fine-tuning of small encoders diverges." in lines
    )
    assert lines.index("  learning_rate: {type: float, low: 5.0e-6, high: 2.0e-4, log: true}") == 3


@pytest.mark.parametrize(
    ("space", "heading"),
    [
        ("epochs: {type: int, low: 1, high: 3}", "1 parameters, 3 points"),
        (
            "patience: {type: categorical, choices: [1, 2]}, "
            "min_epochs: {type: float, low: 0.0, high: 2.0, step: 0.5, when: {patience: 2}}",
            "2 parameters, 6 points",
        ),
        ("batch_size: {type: int, low: 2, high: 1001}", "1 parameters, 1,000 points or more"),
        ("warmup_ratio: {type: float, low: 0.0, high: 0.5}", "1 parameters, without end"),
    ],
    ids=["finite", "conditional", "large", "endless"],
)
def test_the_heading_says_how_large_a_space_is(
    tmp_path: Path, space: str, heading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.space_view.MOST_POINTS", 1000)
    path = tmp_path / "study.yaml"
    path.write_text(f"{HEAD}space: {{parameters: {{{space}}}}}\n")
    assert show(str(path), None).splitlines()[0] == f"# {heading}"


def test_the_model_of_the_command_line_decides_whose_bounds_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"{HEAD}model: x\nspace: quick_wins\n")
    assert show("quick_wins", None) == show("quick_wins", "static:x") != show("quick_wins", "x")
    assert show(str(path), None) != show(str(path), "static:x")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("preset", ["data", "full"])
def test_every_point_of_a_preset_is_a_baseline(tmp_path: Path, preset: str, model: str) -> None:
    lines = list(sample(preset, model, 4, seed=3))
    assert_are_baselines(read(tmp_path, written(lines, f"preset: {preset}"), model), lines)


def test_every_point_of_a_study_of_its_own_is_a_baseline(tmp_path: Path, own: Path) -> None:
    lines = list(sample(str(own), None, 12, seed=3))
    assert_are_baselines(read(tmp_path, written(lines, OWN.strip()), "static:x"), lines)


def written(points: list[str], space: str) -> str:
    points = [f"    p{i}: {point}\n" for i, point in enumerate(points)]
    return f"space:\n  {space}\n  baselines:\n{''.join(points)}"


def assert_are_baselines(file: StudyFile, lines: list[str]) -> None:
    """Within the bounds, and what hangs on others is there exactly when it should be."""
    space, found = searched(file), baselines(file)
    for number in range(len(lines)):
        values = found[f"p{number}"]
        for name, parameter in space.items():
            is_there = all(values.get(parent) in wanted for parent, wanted in parameter.when.items())
            assert (name in values) == is_there
            if isinstance(parameter, FloatRange | IntRange) and is_there:
                assert parameter.low <= float(values[name]) <= parameter.high


@pytest.mark.parametrize("name", ["advanced", "own.yaml"])
def test_the_same_seed_draws_the_same_points_another_draws_others(
    own: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own.parent)
    first = list(sample(name, None, 5, seed=1))
    assert first == list(sample(name, None, 9, seed=1))[:5]
    assert not set(first) & set(sample(name, None, 5, seed=2))
    assert len(set(first)) == 5


@pytest.mark.parametrize("name", ["quick_win", "study.json", "", "search_spaces"])
def test_what_is_neither_preset_nor_file_is_refused_with_those_there_are(name: str) -> None:
    for wrong in (lambda: show(name, None), lambda: list(sample(name, None, 1, 0))):
        with pytest.raises(InputError, match=f"no preset '{name}'; there are quick_wins, data, advanced, full"):
            wrong()


def test_a_study_file_with_a_wrong_space_is_refused_with_its_line(own: Path) -> None:
    own.write_text(own.read_text().replace("high: 0.3, step: 0.1", "high: 1.5"))
    line = own.read_text().splitlines().index("    warmup_ratio: {type: float, low: 0.0, high: 1.5}") + 1
    with pytest.raises(InputError, match=rf"own\.yaml:{line}: warmup_ratio cannot be 1.5"):
        show(str(own), None)


def test_a_space_whose_preset_is_narrowed_is_shown_as_it_is_searched(tmp_path: Path, own: Path) -> None:
    """hard_negative_skip of the preset hangs on tfidf or model; only one of them is left."""
    own.write_text(own.read_text().replace("tfidf, jaccard, model]", "tfidf]").replace("[tfidf, model]", "tfidf"))
    file = read(tmp_path, f"space:\n{indent(show(str(own), None), '  ')}\n", "static:x")
    assert searched(file)["hard_negative_skip"].when == {"hard_negatives": ("tfidf",)}
    assert searched(file) == searched(read_study_file(own))


def test_what_a_space_fixes_is_shown_with_what_it_searches(tmp_path: Path, own: Path) -> None:
    own.write_text(own.read_text() + "    epochs: 4\n")
    file = read(tmp_path, f"space:\n{indent(show(str(own), None), '  ')}\n", "static:x")
    assert file.training.epochs == 4
