"""A plan is checked whole before its first phase begins, and a phase looks around the best so far."""

import re
from pathlib import Path
from typing import Any

import pytest

from hpo.config import baselines, searched, trial_config
from hpo.errors import InputError
from hpo.plan import Plan, around, read_plan
from hpo.study_file import is_plan
from objectives.reading import DataError
from search_spaces.space import FloatRange, IntRange

STUDY = "name: p\nstudy:\n  incidents: {path: i.csv}\n"
BALANCE = "{class_balance: {type: categorical, choices: ['off', sqrt]}}"
BEGINNING = f"{STUDY}phases:\n- {{name: one, space: {{parameters: {BALANCE}}}, budget: {{trials: 9}}}}\n"

# Phases after the first. The line that is said ends in `# here`, or is the first of the case.
PHASES = """
== no budget -> phases.1.budget' is missing
- {name: two, space: data}
== no space -> phases.1.space' is missing
- name: two
  budget: {trials: 9}
== no name -> phases.1.name' is missing
- {space: data, budget: {trials: 9}}
== blank in a name -> phases.1.name
- budget: {trials: 9}
  name: two two  # here
  space: data
== dash in a name, as between those of plan and phase -> phases.1.name
- {name: two-two, space: data, budget: {trials: 9}}
== name of an earlier phase -> two phases have the same name, 'one'
- space: data
  name: one  # here
  budget: {trials: 9}
== misspelt key -> unknown key 'phases.1.erlier'
- name: two
  space: data
  budget: {trials: 9}
  erlier: fix  # here
== training of its own -> unknown key 'phases.1.training'
- {name: two, space: data, budget: {trials: 9}, training: {epochs: 3}}
== no such way to go on -> phases.1.earlier: Input should be 'fix', 'centre' or 'free', found 'keep'
- name: two
  space: data
  budget: {trials: 9}
  earlier: keep  # here
== none of the best -> phases.1.top: Input should be greater than or equal to 1, found 0
- name: two
  space: data
  budget: {trials: 9}
  top: 0  # here
== more of the best than trials -> 9 trials are too few for the 10 best so far
- name: two
  space: advanced
  budget: {trials: 9}
  top: 10  # here
== more of the best and baselines than trials -> 4 trials are too few for the 3 best so far and 2 baselines
- name: two
  space: {preset: advanced, baselines: {a: {epochs: 1}, b: {epochs: 2}}}
  budget: {trials: 4}
  top: 3  # here
== no trials -> phases.1.budget.trials: Input should be greater than or equal to 1, found 0
- name: two
  space: data
  budget:
    trials: 0  # here
== unknown preset -> no preset 'dat'; there are quick_wins, data, advanced, full
- name: two
  budget: {trials: 9}
  space: dat  # here
== space that is not there -> nowhere.yaml; give a preset
- name: two
  budget: {trials: 9}
  space: nowhere.yaml  # here
== nothing left to search -> phase 'two' has nothing left to search when what was searched before is fixed
- name: two
  budget: {trials: 9}
  space: {parameters: {class_balance: {type: categorical, choices: [sqrt, "off"]}}}
  earlier: fix
== lack of what may be the best -> class_balance may be 'off' after 'p-one'; add that to its choices
- {name: b, space: {parameters: {class_balance: {type: categorical, choices: [sqrt, oversample]}}}, budget: {trials: 9}}
== lack in a line of its own -> class_balance may be 'off' after 'p-one'; add that to its choices
- name: two
  budget: {trials: 9}
  space:
    parameters:
      class_balance:
        type: categorical
        choices: [sqrt, oversample]  # here
== lack of what the study has -> schedule may be 'linear' after 'p-one'; add that to its choices
- {name: two, space: {parameters: {schedule: {type: categorical, choices: [cosine, constant_with_warmup]}}},
   budget: {trials: 9}}
== lack of what the best before the last may have -> class_balance may be 'off' after 'p-one'
- {name: two, space: advanced, budget: {trials: 9}}
- {name: it, budget: {trials: 9}, space: own.yaml}  # here
== lack of what was fixed -> patience may be 3 after 'p-two'
- {name: two, space: {parameters: {patience: 3, epochs: {type: int, low: 1, high: 2}}}, budget: {trials: 9}}
- {name: c, space: {parameters: {patience: {type: categorical, choices: ["off", 2]}}}, budget: {trials: 9}}  # here
"""
# Of the whole file.
PLANS = """
== no phases -> 'phases' is missing
name: p
study: {incidents: {path: i.csv}}
== no study -> 'study' is missing
name: p
phases: [{name: one, space: data, budget: {trials: 9}}]
== list for a phase -> phases.0
name: p
study: {incidents: {path: i.csv}}
phases:
- [quick_wins]  # here
== phases in a mapping -> phases: expected a list
name: p
study: {incidents: {path: i.csv}}
phases:  # here
  one: {space: quick_wins, budget: {trials: 9}}
== no phase at all -> phases: at least 1 expected, found 0
name: p
study: {incidents: {path: i.csv}}
phases: []  # here
== phases of one name -> two phases have the same name
name: p
study: {incidents: {path: i.csv}}
phases: [{name: a, space: data, budget: {trials: 9}}, {name: a, space: data, budget: {trials: 9}}]  # here
== long name -> name: String should match pattern
study: {incidents: {path: i.csv}}
name: of_a_plan_that_says_all_it_does_in_it  # here
phases: [{name: one, space: data, budget: {trials: 9}}]
== name in the study -> each phase has its own name; remove it here
name: p
study:
  incidents: {path: i.csv}
  name: p  # here
phases: [{name: one, space: data, budget: {trials: 9}}]
== space in the study -> each phase has its own space; remove it here
name: p
study: {incidents: {path: i.csv}, space: quick_wins}  # here
phases: [{name: one, space: data, budget: {trials: 9}}]
== budget in the study -> each phase has its own budget; remove it here
name: p
study: {budget: {trials: 9}, incidents: {path: i.csv}}  # here
phases: [{name: one, space: data, budget: {trials: 9}}]
== unknown key in the study -> unknown key 'study.bugdet'
name: p
study:
  incidents: {path: i.csv}
  bugdet: {trials: 9}  # here
phases: [{name: one, space: data, budget: {trials: 9}}]
== study that cannot be -> study.splits: validation 0.6 + test 0.4 leave nothing
name: p
study:
  incidents: {path: i.csv}
  splits: {validation: 0.6, test: 0.4}  # here
phases: [{name: one, space: data, budget: {trials: 9}}]
== no incidents -> 'study.incidents' is missing
name: p
study: {seed: 1}  # here
phases: [{name: one, space: data, budget: {trials: 9}}]
== fewer trials than baselines -> 1 trials are too few for the baselines alone
name: p
study: {incidents: {path: i.csv}}
phases:
- name: one
  space: quick_wins
  budget: {trials: 1}  # here
== names that are too long together -> name
name: x2345678901234567890123456789012
study: {incidents: {path: i.csv}}
phases:
- {name: y2345678901234567890123456789012, space: data, budget: {trials: 9}}  # here
"""


def read(folder: Path, text: str) -> Plan:
    (folder / "i.csv").write_text("number\n1\n")
    (folder / "own.yaml").write_text("parameters: {class_balance: {type: categorical, choices: [sqrt, oversample]}}\n")
    (folder / "plan.yaml").write_text(text)
    return read_plan(folder / "plan.yaml")


def cases(table: str, head: str) -> list[Any]:
    found = []
    for case in re.split("^== ", table, flags=re.MULTILINE)[1:]:
        heading, text = case.split("\n", 1)
        title, words = heading.split(" -> ")
        text = text if "# here" in text else text.replace("\n", "  # here\n", 1)
        found.append(pytest.param(head + text, words, id=title))
    return found


@pytest.mark.parametrize(("text", "words"), cases(PHASES, BEGINNING) + cases(PLANS, ""))
def test_a_wrong_plan_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    line = next(i for i, line in enumerate(text.splitlines(), 1) if line.endswith("# here"))
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'plan.yaml'}:{line}: "), message
    assert words in message
    assert not re.search("(?i)instance of|tuple|discriminator|\n", message)


def test_incidents_that_are_not_there_stop_a_plan_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv: cannot be read"):
        read(tmp_path, BEGINNING.replace("i.csv", "nowhere.csv"))


def test_a_plan_becomes_a_study_for_each_phase_that_differ_in_space_and_budget(tmp_path: Path) -> None:
    text = "- {name: two, space: epochs.yaml, budget: {trials: 7}, earlier: fix, top: 2}\n"
    (tmp_path / "epochs.yaml").write_text("parameters: {epochs: {type: int, low: 1, high: 2}, scale: 10.0}\n")
    plan = read(tmp_path, BEGINNING.replace("i.csv}", "i.csv}\n  seed: 7") + text)
    first, second = plan.files
    assert (plan.name, [phase.earlier for phase in plan.phases]) == ("p", ["centre", "fix"])
    assert [(file.name, file.budget.trials, file.seed) for file in plan.files] == [("p-one", 9, 7), ("p-two", 7, 7)]
    assert [set(searched(file)) for file in plan.files] == [{"class_balance"}, {"epochs"}]
    assert (trial_config(first).training.scale, trial_config(second).training.scale) == (20.0, 10.0)
    assert first.incidents == second.incidents
    assert first.incidents.path == str(tmp_path / "i.csv")


def test_a_phase_may_search_what_the_study_sets_for_those_before(tmp_path: Path) -> None:
    text = BEGINNING.replace("i.csv}", "i.csv}\n  training: {epochs: 5, schedule: cosine}")
    with_cosine, without = (
        f"epochs: {{type: int, low: 1, high: 9}}, schedule: {{type: categorical, choices: [linear, {other}]}}"
        for other in ("cosine", "constant_with_warmup")
    )
    plan = read(tmp_path, f"{text}- {{name: two, space: {{parameters: {{{with_cosine}}}}}, budget: {{trials: 9}}}}\n")
    assert [file.training.epochs for file in plan.files] == [5, 5]
    assert searched(plan.files[1]).keys() == {"epochs", "schedule"}
    with pytest.raises(InputError, match="schedule may be 'cosine' after 'p-one'; add that to its choices"):
        read(tmp_path, f"{text}- {{name: two, space: {{parameters: {{{without}}}}}, budget: {{trials: 9}}}}\n")


def test_recipes_of_presets_run_in_the_first_phase_alone_and_own_baselines_where_they_stand(tmp_path: Path) -> None:
    phases = "".join(
        f"- {{name: {name}, space: {{preset: {name}, baselines: {{{name}_own: {{}}}}}}, budget: {{trials: 9}}}}\n"
        for name in ("quick_wins", "data", "advanced")
    )
    files = read(tmp_path, f"{STUDY}phases:\n{phases}").files
    found = [list(baselines(file)) for file in files]
    assert found == [["v4", "hand_set", "quick_wins_own"], ["data_own"], ["advanced_own"]]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("name: p\nphases:\n- {}\n", True),
        ("name: s\n# phases: none\nmodel: x\n", False),
        ("study:\n  phases: []\n", False),
    ],
)
def test_a_plan_is_told_from_a_study_by_its_phases(tmp_path: Path, text: str, is_one: bool) -> None:
    (tmp_path / "file.yaml").write_text(text)
    assert is_plan(tmp_path / "file.yaml") == is_one
    assert not is_plan(tmp_path / "nowhere.yaml")


LINEAR = FloatRange(type="float", low=0.0, high=0.4)
LOG = FloatRange(type="float", low=1e-4, high=1e-2, log=True, when={"patience": (2,)})


@pytest.mark.parametrize(
    ("parameter", "best", "low", "high"),
    [
        (LINEAR, 0.2, 0.1, 0.3),
        (LINEAR, 0.15, 0.05, 0.25),
        (LINEAR, 0.0, 0.0, 0.2),
        (LINEAR, 0.05, 0.0, 0.2),
        (LINEAR, 0.4, 0.2, 0.4),
        (LINEAR, -1.0, 0.0, 0.2),
        (LINEAR, 9.0, 0.2, 0.4),
        (LOG, 1e-3, 3.162e-4, 3.162e-3),
        (LOG, 1e-4, 1e-4, 1e-3),
        (LOG, 9e-3, 1e-3, 1e-2),
        (LOG, 1e-6, 1e-4, 1e-3),
        (LOG, 0.0, 1e-4, 1e-3),
        (LOG, 0.5, 1e-3, 1e-2),
    ],
)
def test_half_of_a_range_is_left_around_the_best_or_at_the_edge_that_it_is_near(
    parameter: FloatRange, best: float, low: float, high: float
) -> None:
    narrowed = around(parameter, best)
    assert (narrowed.low, narrowed.high) == pytest.approx((low, high))
    assert narrowed == parameter.model_copy(update={"low": narrowed.low, "high": narrowed.high})


@pytest.mark.parametrize(
    ("low", "high", "log", "best", "left"),
    [
        (0, 100, False, 50, (25, 75)),
        (0, 100, False, 0, (0, 50)),
        (0, 100, False, 100, (50, 100)),
        (0, 100, False, 700, (50, 100)),
        (1, 20, True, 1, (1, 5)),
        (16, 256, True, 64, (32, 128)),
        (16, 256, True, 256, (64, 256)),
        (1, 3, False, 2, (1, 3)),
        (1, 2, False, 2, (1, 2)),
    ],
)
def test_whole_numbers_are_left_in_half_of_a_range_and_what_is_cut_by_it(
    low: int, high: int, log: bool, best: int, left: tuple[int, int]
) -> None:
    narrowed = around(IntRange(type="int", low=low, high=high, log=log), best)
    assert isinstance(narrowed, IntRange)
    assert (narrowed.low, narrowed.high) == pytest.approx(left, abs=1)
    assert low <= narrowed.low <= best or best > high
    assert high >= narrowed.high >= best or best > high


def test_wherever_the_best_is_it_stays_within_what_is_left() -> None:
    for parameter in (
        LINEAR,
        LOG,
        IntRange(type="int", low=3, high=77),
        IntRange(type="int", low=3, high=770, log=True),
    ):
        bounds = parameter.low, parameter.high
        for i in range(101):
            best = bounds[0] + (bounds[1] - bounds[0]) * i / 100
            best = round(best) if isinstance(parameter, IntRange) else best
            left = around(parameter, best)
            assert bounds[0] <= left.low < left.high <= bounds[1]
            assert left.low * 0.999 <= best <= left.high * 1.001


@pytest.mark.parametrize(
    ("parameter", "best"),
    [
        (FloatRange(type="float", low=0.12344, high=0.99996), 0.0),
        (FloatRange(type="float", low=0.12344, high=0.99996), 1.0),
    ],
    ids=["rounded down", "rounded up"],
)
def test_what_is_left_never_lies_outside_of_the_range(parameter: FloatRange, best: float) -> None:
    left = around(parameter, best)
    assert parameter.low <= left.low < left.high <= parameter.high


def test_a_later_phase_needs_no_trials_for_recipes_that_it_does_not_run(tmp_path: Path) -> None:
    plan = read(tmp_path, BEGINNING + "- {name: two, space: advanced, budget: {trials: 1}, top: 1}\n")
    assert baselines(plan.files[1]) == {}
