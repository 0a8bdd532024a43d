"""The plan of three phases on real service-desk tickets, phase after phase, with what was found made up."""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import URL

from hpo.config import StudyFile, baselines, searched, trial_config
from hpo.plan import Plan, mark, phase_file, read_plan
from hpo.study import BASELINE, PROPOSED_BY, create_study, open_study, parameters_of
from objectives.evaluation import METRICS
from search_spaces.space import suggest
from storage.native import PostgresStorage

pytestmark = pytest.mark.realdata


@pytest.fixture
def plan(real_data: Path) -> Plan:
    return read_plan(Path(__file__).with_name("helpdesk_plan.yaml"))


def begin(plan: Plan, number: int, url: URL) -> tuple[optuna.Study, StudyFile]:
    storage = PostgresStorage(url)
    study = create_study(url, storage, phase_file(plan, number, storage))
    mark(plan, number, study)
    return open_study(storage, study.study_name)


def tell_those_that_wait(study: optuna.Study, file: StudyFile, spearman: dict[str, float]) -> None:
    """By the recipe's name; the others are no good."""
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values out of range, as recipes have them
            suggest(searched(file), trial := study.ask())
        found = spearman.get(trial.user_attrs.get(BASELINE, ""), 0.3)
        for metric in METRICS:
            trial.set_user_attr(metric, found)
        study.tell(trial, found)


def test_each_phase_searches_its_preset_and_recipes_run_in_the_first(plan: Plan) -> None:
    first, second, third = plan.files
    assert [phase.name for phase in plan.phases] == ["training", "data", "advanced"]
    assert [list(baselines(file)) for file in plan.files] == [["v4", "hand_set"], [], []]
    assert {"schedule", "patience", "scale"} <= searched(first).keys()
    assert {"train_pairs", "positives", "hard_negatives"} <= searched(second).keys() - searched(first).keys()
    assert {"false_negatives", "augmentation"} <= searched(third).keys() - searched(second).keys()


@pytest.mark.parametrize("best", ["v4", "hand_set"])
def test_every_phase_begins_from_a_recipe_that_is_still_the_best(plan: Plan, database: URL, best: str) -> None:
    recipe = trial_config(plan.files[0], baselines(plan.files[0])[best])
    tell_those_that_wait(*begin(plan, 0, database), {"v4": 0.5, "hand_set": 0.5} | {best: 0.6})
    for number in (1, 2):
        study, file = begin(plan, number, database)
        again = study.get_trials()[0]
        tell_those_that_wait(study, file, {})
        config = trial_config(file, parameters_of(again) | again.system_attrs["fixed_params"])
        assert again.user_attrs[PROPOSED_BY].startswith("training#")
        assert (config.training, config.mining) == (recipe.training, recipe.mining)
