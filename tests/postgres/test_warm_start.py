"""What a study has from studies before it: their trials with all that they found, or their best to be tried first."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import optuna
import psycopg2
import pytest
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL

from hpo.best_file import read_best_file
from hpo.config import StudyFile
from hpo.errors import InputError
from hpo.export import export
from hpo.plan import read_plan
from hpo.proposals import FIXED
from hpo.status import take_snapshot
from hpo.study import BASELINE, COPIED, PROPOSED_BY, create_study, open_study
from hpo.study_file import read_study_file
from storage import terms
from storage.native import PostgresStorage
from tests.chaos.crew import Crew
from tests.chaos.stub import Orders
from tests.postgres.test_search_commands import hpo_here
from tests.postgres.test_study import FAULT
from tests.unit.test_feasible import add

Query = Callable[..., list[tuple[object, ...]]]
Rows = Callable[[URL], dict[str, list[str]]]
BUDGET = 3  # of study_yaml, one of them its baseline
ENDED = [0.41, 0.47, 0.43, 0.45, 0.42, 0.46, 0.44]  # Spearman of the complete trials of `source`
COPIES = 8  # those, and a pruned one


@pytest.fixture
def source(database: URL, study_yaml: Path) -> optuna.Study:
    """A study `small`: its baseline waits; others have ended in every way."""
    study, file = create(database, study_yaml)
    for number, spearman in enumerate(ENDED):
        add(study, file, spearman, learning_rate=0.01 * (number + 1), epochs=1)
    add(study, file, 0.3, TrialState.PRUNED, learning_rate=0.09, epochs=2)
    add(study, file, None, TrialState.FAIL, learning_rate=0.002, epochs=2)
    return study


def create(database: URL, path: Path) -> tuple[optuna.Study, StudyFile]:
    study = create_study(database, PostgresStorage(database), read_study_file(path))
    return open_study(PostgresStorage(database), study.study_name)


def heir_of(like: Path, *sources: str, name: str = "heir", **changed: str) -> Path:
    """A study file, warm-started; a line whose key is in `changed` becomes what stands there."""
    lines = like.read_text().replace("name: small", f"name: {name}\nwarm_start: [{', '.join(sources)}]").splitlines()
    for key, line in changed.items():
        assert sum(old.strip().startswith(f"{key}:") for old in lines) == 1
        lines = [line if old.strip().startswith(f"{key}:") else old for old in lines]
    heir = like.with_name(f"{name}.yaml")
    heir.write_text("\n".join(lines) + "\n")
    return heir


def copies(study: optuna.Study) -> list[FrozenTrial]:
    return [trial for trial in study.get_trials() if COPIED in trial.user_attrs]


def own(study: optuna.Study) -> list[FrozenTrial]:
    return [trial for trial in study.get_trials() if COPIED not in trial.user_attrs]


def budget_of(study: optuna.Study, database: URL) -> int:
    found = terms.read(PostgresStorage(database).ask, study._study_id)
    assert found
    return found.budget


def crew_for(database: URL, folder: Path, name: str) -> Crew:
    return Crew(Orders(database.render_as_string(hide_password=False), name, folder / f"{name}.ledger"))


def test_trials_are_copied_whole(database: URL, study_yaml: Path, source: optuna.Study) -> None:
    heir, _ = create(database, heir_of(study_yaml, "small"))
    done = [trial for trial in source.get_trials() if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert [trial.number for trial in done] == list(range(1, 9))
    for copy, original in zip(copies(heir), done, strict=True):
        for part in ("state", "value", "params", "distributions", "intermediate_values", "constraints"):
            assert getattr(copy, part) == getattr(original, part)
        assert copy.user_attrs == original.user_attrs | {COPIED: f"small#{original.number}"}
        assert (copy.datetime_start, copy.datetime_complete) == (original.datetime_start, original.datetime_complete)


def test_recipe_outside_the_bounds_is_copied_as_it_was(database: URL, study_yaml: Path, tmp_path: Path) -> None:
    create(database, study_yaml)
    crew = crew_for(database, tmp_path, "small")
    crew.start(1)
    assert crew.join() == [0]
    recipe, *_ = copies(create(database, heir_of(study_yaml, "small"))[0])
    assert (recipe.user_attrs[BASELINE], recipe.params) == ("v4", {"learning_rate": 1e-5, "epochs": 8})


def test_copies_count_neither_as_done_nor_as_the_best(
    database: URL, study_yaml: Path, source: optuna.Study, tmp_path: Path
) -> None:
    heir, file = create(database, heir_of(study_yaml, "small"))
    snapshot = take_snapshot(heir, file)
    assert (snapshot.budget, snapshot.finished, snapshot.best_trial) == (BUDGET, 0, None)
    said = json.loads(hpo_here(database, "status", "heir", "--json").stdout)
    assert (said["budget"], said["complete"], said["pruned"], said["waiting"], said["best_trial"]) == (3, 0, 0, 1, None)
    with pytest.raises(InputError, match="no completed trial yet"):
        export(heir, file, tmp_path / "best.yaml")


def test_budget_of_a_warm_started_study_is_exact_with_four_workers(
    database: URL, study_yaml: Path, source: optuna.Study, tmp_path: Path
) -> None:
    heir, _ = create(database, heir_of(study_yaml, "small", budget="budget: {trials: 12}"))
    crew = crew_for(database, tmp_path, "heir")
    crew.start(4)
    assert crew.join() == [0] * 4
    assert [trial.state for trial in own(heir)] == [TrialState.COMPLETE] * 12
    assert len(crew.told()) == 12
    assert len(copies(heir)) == COPIES


def test_copies_teach_the_sampler(database: URL, study_yaml: Path, source: optuna.Study, tmp_path: Path) -> None:
    heir, _ = create(database, heir_of(study_yaml, "small"))
    crew = crew_for(database, tmp_path, "heir")
    crew.start(1)
    crew.join()
    assert [t.user_attrs[PROPOSED_BY] for t in own(heir)][1:] == ["tpe, from 9 trials", "tpe, from 10 trials"]


@pytest.mark.parametrize("then", ["nothing", "one more trial", "its end"])
def test_warm_started_study_is_resumed_as_it_is_whatever_became_of_its_source(
    database: URL, study_yaml: Path, source: optuna.Study, rows: Rows, then: str
) -> None:
    path = heir_of(study_yaml, "small")
    heir, file = create(database, path)
    if then == "one more trial":
        add(source, file, 0.5, learning_rate=0.01, epochs=1)
    elif then == "its end":
        optuna.delete_study(study_name="small", storage=PostgresStorage(database))
    before = rows(database)
    create(database, path)
    assert rows(database) == before
    assert budget_of(heir, database) == BUDGET + COPIES


def test_trials_that_reach_a_study_by_two_ways_are_copied_once(
    database: URL, study_yaml: Path, source: optuna.Study
) -> None:
    create(database, heir_of(study_yaml, "small", name="middle"))
    heir, _ = create(database, heir_of(study_yaml, "small", "middle"))
    assert len(copies(heir)) == COPIES


@pytest.mark.parametrize(
    "changed",
    [{"pairs": "pairs: {held_out: 900}"}, {"mining": "mining: {train_pairs: 300}"}, {"model": "labels: {near: 0.8}"}],
    ids=["held-out pairs", "training pairs", "labels"],
)
def test_of_a_study_with_other_data_the_five_best_are_tried_first(
    database: URL, study_yaml: Path, source: optuna.Study, changed: dict[str, str]
) -> None:
    heir, _ = create(database, heir_of(study_yaml, "small", **changed))
    baseline, *first = heir.get_trials()
    assert copies(heir) == []
    assert baseline.user_attrs[BASELINE] == "v4"
    assert [trial.user_attrs for trial in first] == [
        {PROPOSED_BY: f"small#{number}, of the best so far"} for number in (2, 6, 4, 7, 3)
    ]
    best = [{"learning_rate": rate, "epochs": 1} for rate in (0.02, 0.06, 0.04, 0.07, 0.03)]
    assert [trial.system_attrs[FIXED] for trial in first] == [pytest.approx(values) for values in best]
    assert budget_of(heir, database) == BUDGET


def test_other_tickets_are_other_data(
    database: URL, study_yaml: Path, source: optuna.Study, incidents_csv: Path, tmp_path: Path
) -> None:
    tickets = tmp_path / "tickets.csv"
    tickets.write_bytes(incidents_csv.read_bytes() + b"\n")
    heir, _ = create(database, heir_of(study_yaml, "small", path=f"  path: {tickets}"))
    assert (len(copies(heir)), len(own(heir))) == (0, 6)


def test_what_cannot_work_is_not_tried_again_first(database: URL, study_yaml: Path, source: optuna.Study) -> None:
    """It diverged, after a report that no other trial has reached."""
    study, file = open_study(PostgresStorage(database), "small")
    add(study, file, 0.9, TrialState.PRUNED, {"reason": "Diverged"}, learning_rate=0.1, epochs=2)
    heir, _ = create(database, heir_of(study_yaml, "small", pairs="pairs: {held_out: 900}"))
    assert heir.get_trials()[1].user_attrs[PROPOSED_BY] == "small#2, of the best so far"


def test_of_a_study_where_none_reaches_a_floor_the_highest_are_tried_first(database: URL, study_yaml: Path) -> None:
    study, file = create(database, study_yaml)
    for spearman in (0.5, 0.7, 0.6):
        add(study, file, spearman, constraints={"f1": 0.1}, learning_rate=0.01 * spearman, epochs=1)
    heir, _ = create(database, heir_of(study_yaml, "small", pairs="pairs: {held_out: 900}"))
    words = [trial.user_attrs[PROPOSED_BY] for trial in heir.get_trials()[1:]]
    assert words == [f"small#{number}, of the best so far" for number in (2, 3, 1)]


@pytest.mark.parametrize(
    ("sources", "changed", "sentence"),
    [
        (["small"], {"epochs": "    epochs: {type: int, low: 1, high: 3}"}, "study 'small' searches another space"),
        (["smal"], {}, "no study 'smal' in this database; there are: small"),
        (["small", "smal"], {}, "no study 'smal' in this database; there are: small"),
    ],
    ids=["another space", "no such study", "no such study after one that is there"],
)
def test_warm_start_that_cannot_be_is_refused_and_the_name_stays_free(
    database: URL,
    study_yaml: Path,
    source: optuna.Study,
    sources: list[str],
    changed: dict[str, str],
    sentence: str,
) -> None:
    ended = hpo_here(database, "create", heir_of(study_yaml, *sources, **changed))
    said = [line for line in ended.stdout.splitlines() if "out of reach" not in line]
    assert (ended.returncode, len(said)) == (2, 1)
    assert sentence in said[0]
    heir, _ = create(database, heir_of(study_yaml, "small"))  # mended
    assert (len(own(heir)), len(copies(heir))) == (1, COPIES)


def test_warm_start_is_checked_also_where_an_earlier_maker_died(
    database: URL, study_yaml: Path, source: optuna.Study
) -> None:
    optuna.create_study(study_name="heir", storage=PostgresStorage(database), direction="maximize")
    for wrong in (
        heir_of(study_yaml, "small", epochs="    epochs: {type: int, low: 1, high: 3}"),
        heir_of(study_yaml, "smal"),
    ):
        with pytest.raises(InputError):
            create(database, wrong)
    assert len(copies(create(database, heir_of(study_yaml, "small"))[0])) == COPIES


def test_plan_whose_phases_search_other_spaces_than_their_warm_start_is_refused_before_it_begins(
    study_yaml: Path, incidents_csv: Path
) -> None:
    space = "{parameters: {%s: {type: float, low: 0.0, high: 0.3}}}"
    phases = (f"- {{name: {n}, budget: {{trials: 3}}, space: {space % n}}}" for n in ("warmup_ratio", "weight_decay"))
    text = f"name: p\nstudy: {{incidents: {{path: {incidents_csv}}}, warm_start: [small]}}\nphases:\n"
    study_yaml.write_text(text + "\n".join(phases))
    with pytest.raises(InputError, match="warm_start"):
        read_plan(study_yaml)


def test_creation_that_dies_at_any_write_copies_nothing_twice(
    database: URL, study_yaml: Path, source: optuna.Study, query: Query
) -> None:
    query(database, FAULT)
    storage, file = PostgresStorage(database), read_study_file(heir_of(study_yaml, "small"))
    for died in itertools.count():
        query(database, "SELECT setval('writes', %s)", 1000 - died)  # the next write but `died` fails
        try:
            create_study(database, storage, file)
            break  # it needs no more writes than that
        except psycopg2.Error:
            query(database, "SELECT setval('writes', 2000)")
        heir = create_study(database, storage, file)
        assert [trial.user_attrs[COPIED] for trial in copies(heir)] == [f"small#{n}" for n in range(1, 9)]
        assert (len(own(heir)), budget_of(heir, database)) == (1, BUDGET + COPIES)
        storage.delete_study(heir._study_id)
    assert died > 12


RESULT = {
    "threshold": 0.5,
    "stop_reason": "completed",
    "stop_epoch": 1.0,
    "best_epoch": 1.0,
    "train_pairs": 400,
    "device": "cpu",
}


def test_status_and_export_agree_on_the_best_beside_copied_recipes(
    database: URL, study_yaml: Path, tmp_path: Path
) -> None:
    """Of two trials one has the higher Spearman, the other reaches what the recipe of the source had."""
    study, file = create(database, study_yaml)
    add(study, file, 0.4, attributes={BASELINE: "v4", "roc_auc": 0.8}, learning_rate=0.01, epochs=1)
    path = heir_of(study_yaml, "small", baselines="  baselines: {}", v4="")
    heir, file = create(database, path)
    for spearman, roc_auc in ((0.5, 0.9), (0.6, 0.7)):
        add(heir, file, spearman, attributes=RESULT | {"roc_auc": roc_auc}, learning_rate=0.02, epochs=1)
    export(heir, file, tmp_path / "best.yaml")
    exported = read_best_file(tmp_path / "best.yaml")[0].provenance.trial
    assert take_snapshot(heir, file).best_trial == exported


@pytest.mark.parametrize(
    "parameter",
    [
        "weight_decay: {type: float, low: 1.0e-4, high: 0.1, log: true}",
        "patience: {type: categorical, choices: [2, 3]}",
    ],
    ids=["nothing in a logarithmic range", "no choice"],
)
def test_recipe_that_leaves_a_parameter_where_the_space_cannot_have_it_is_refused_or_runs(
    database: URL, study_yaml: Path, tmp_path: Path, parameter: str
) -> None:
    study_yaml.write_text(study_yaml.read_text().replace("    epochs: {", f"    {parameter}\n    epochs: {{"))
    try:
        study, _ = create(database, study_yaml)
    except InputError:
        return
    crew = crew_for(database, tmp_path, "small")
    crew.start(1)
    assert crew.join() == [0]
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * BUDGET


def test_recipe_need_not_say_what_its_condition_leaves_out(database: URL, study_yaml: Path, tmp_path: Path) -> None:
    parameters = """    patience: {type: categorical, choices: ["off", 2]}
    min_epochs: {type: float, low: 0.1, high: 1.0, log: true, when: {patience: 2}}
"""
    study_yaml.write_text(study_yaml.read_text().replace("    epochs: {", f"{parameters}    epochs: {{"))
    study, _ = create(database, study_yaml)
    crew = crew_for(database, tmp_path, "small")
    crew.start(1)
    assert crew.join() == [0]
    assert study.get_trials()[0].params == {"learning_rate": 1e-5, "patience": "off", "epochs": 8}
