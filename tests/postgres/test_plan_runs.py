"""Plans as people run them: each phase from the best before, and none of it lost or done twice when it is killed."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psutil
import psycopg2
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL

from hpo.config import StudyFile, searched
from hpo.errors import HpoError
from hpo.plan import Plan, around, mark, phase_file, read_plan
from hpo.proposals import SAMPLER_SEED
from hpo.study import BASELINE, OVERRIDES, PROPOSED_BY, create_study, open_study, parameters_of
from objectives.evaluation import METRICS
from search_spaces.space import FloatRange, SpaceWithBaselines, label
from storage.native import PostgresStorage
from tests.postgres.test_search_commands import hpo_here
from tests.postgres.test_study import FAULT
from tests.unit.test_feasible import add

Ended = subprocess.CompletedProcess[str]
Start = Callable[..., subprocess.Popen[str]]
Run = Callable[..., Ended]
Query = Callable[..., list[tuple[object, ...]]]
Rows = Callable[[URL], dict[str, list[str]]]
Trials = dict[str, list[FrozenTrial]]
BUDGETS = {"training": 4, "loss": 5, "decay": 4}
SEARCHED = ("learning_rate", "epochs", "batch_size", "scale", "weight_decay")  # somewhere in the plan
PLAN = """name: desk
study:
  incidents: {path: INCIDENTS, columns: {duplicate_of: duplicate_of}}
  pairs: {held_out: 500}
  mining: {train_pairs: 400}
  training: {eval_every_examples: 100}
  lease_s: 2
phases:
- name: training
  budget: {trials: 4}
  space:
    parameters: {learning_rate: RATE, epochs: {type: int, low: 1, high: 2}}
    baselines: {v4: {learning_rate: 1e-5, batch_size: 16, epochs: 2}}
- name: loss
  budget: {trials: 5}
  top: 2
  space: {parameters: {learning_rate: RATE, scale: {type: float, low: 2.0, high: 40.0, log: true}}}
- name: decay
  budget: {trials: 4}
  top: 2
  earlier: fix
  space: {parameters: {learning_rate: RATE, weight_decay: {type: float, low: 0.0, high: 0.1}}}
""".replace("RATE", "{type: float, low: 1e-3, high: 0.1, log: true}")
LOSS, DECAY = PLAN[PLAN.index("- name: loss") : PLAN.index("- name: decay")], PLAN[PLAN.index("- name: decay") :]
CHANGES = [
    (LOSS + DECAY, DECAY + LOSS),
    ("low: 2.0", "low: 1.0"),
    ("train_pairs: 400", "train_pairs: 300"),
    ("v4: {learning_rate: 1e-5", "v4: {learning_rate: 1e-4"),
    ("  earlier: fix\n", "  earlier: free\n"),
    ("  top: 2\n  earlier", "  top: 3\n  earlier"),
]


@dataclass(frozen=True)
class Story:
    """A plan that was killed in its second phase, run again to its end, and then once more."""

    url: URL
    path: Path
    out: Path
    when_killed: Trials
    finished: Ended
    rows_then: dict[str, list[str]]
    again: Ended
    training: subprocess.Popen[str]  # its best.yaml

    @property
    def trials(self) -> Trials:
        return trials_of(self.url)

    def file(self, phase: str) -> StudyFile:
        return open_study(PostgresStorage(self.url), f"desk-{phase}")[1]

    def phase_of(self, trial: FrozenTrial) -> str:
        return next(phase for phase, trials in self.trials.items() if trial in trials)


@pytest.fixture(scope="module")
def story(module_database: URL, incidents_csv: Path, start: Start, hpo: Run, rows: Rows) -> Story:
    url, folder = module_database, incidents_csv.parent / "plan"
    folder.mkdir()
    path, out = folder / "plan.yaml", folder / "out"
    path.write_text(PLAN.replace("INCIDENTS", str(incidents_csv)))
    command = ("run", path, "--workers", "1", "-o", out)
    first = start(url, "-m", "hpo", *command)
    while not any(trial.state == TrialState.RUNNING for trial in trials_of(url)["loss"][2:4]):
        assert first.poll() is None, first.communicate()[0]
    kill_with_all_below(first)
    return Story(
        url=url,
        path=path,
        out=out,
        when_killed=trials_of(url),
        finished=hpo(url, *command),
        rows_then=rows(url),
        again=hpo_here(url, *command),
        training=start(url, "-m", "hpo", "train", out / "best.yaml", "-o", folder / "model"),
    )


def trials_of(url: URL) -> Trials:
    """By phase; none of one that is not there yet."""
    storage, found = PostgresStorage(url), Trials()
    for phase in BUDGETS:
        with suppress(KeyError):
            found[phase] = optuna.load_study(study_name=f"desk-{phase}", storage=storage).get_trials(deepcopy=False)
    storage.remove_session()
    return Trials({phase: [] for phase in BUDGETS} | found)


def kill_with_all_below(process: subprocess.Popen[str]) -> None:
    """It first, so that it sees nobody go; then its workers and their trainers."""
    everybody = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert len(everybody) == 3
    for one in everybody:
        with suppress(psutil.NoSuchProcess):  # a trainer goes with its worker
            one.kill()
    psutil.wait_procs(everybody[1:], timeout=10)
    process.communicate()


def ranked(*phases: list[FrozenTrial]) -> list[FrozenTrial]:
    """The best first, said a second time: those that no baseline beats in any metric but Spearman, by Spearman."""
    trials = [trial for phase in phases for trial in phase if trial.state == TrialState.COMPLETE]
    recipe = phases[0][0].user_attrs

    def standing(trial: FrozenTrial) -> tuple[bool, float]:
        return any(trial.user_attrs[metric] < recipe[metric] for metric in METRICS[1:]), -trial.user_attrs["spearman"]

    return sorted(trials, key=standing)


def settings(file: StudyFile, trial: FrozenTrial) -> dict[str, Any]:
    """What it was trained with, as far as this plan changes it."""
    return {name: getattr(file.training, name) for name in SEARCHED} | parameters_of(trial)


def test_plan_that_was_killed_ends_with_exactly_the_trials_of_each_budget(story: Story) -> None:
    assert story.finished.returncode == 0, story.finished.stdout
    found = {phase: [trial.number for trial in trials] for phase, trials in story.trials.items()}
    assert found == {phase: list(range(budget)) for phase, budget in BUDGETS.items()}
    assert {trial.state.name for trials in story.trials.values() for trial in trials} <= {"COMPLETE", "PRUNED"}


def test_what_was_there_when_it_was_killed_is_kept(story: Story) -> None:
    for phase, before in story.when_killed.items():
        for then, now in zip(before, story.trials[phase], strict=False):
            assert not then.params or now.params == then.params
            assert not then.state.is_finished() or now == then
    are_over = [[trial.state.is_finished() for trial in trials] for trials in story.when_killed.values()]
    assert are_over in ([[True] * 4, [True] * number + [False], []] for number in (2, 3, 4))


def test_nothing_is_proposed_twice(story: Story) -> None:
    for trials in story.trials.values():
        words = [trial.user_attrs[PROPOSED_BY] for trial in trials if SAMPLER_SEED not in trial.user_attrs]
        seeds = [trial.user_attrs[SAMPLER_SEED] for trial in trials if SAMPLER_SEED in trial.user_attrs]
        points = [label(parameters_of(trial)) for trial in trials]
        assert [len(set(some)) for some in (words, seeds, points)] == [len(some) for some in (words, seeds, points)]
        assert len(words) + len(seeds) == len(points)


def test_phase_searches_again_around_the_best_before_and_keeps_the_rest_as_that_had_it(story: Story) -> None:
    best, here = settings(story.file("training"), ranked(story.trials["training"])[0]), story.file("loss")
    quarter = math.log(100) / 4  # of two magnitudes one is left, the best in its middle if it can be
    middle = min(max(math.log(best["learning_rate"]), math.log(1e-3) + quarter), math.log(0.1) - quarter)
    rate = searched(here)["learning_rate"]
    assert isinstance(rate, FloatRange)
    assert (rate.low, rate.high) == pytest.approx((math.exp(middle - quarter), math.exp(middle + quarter)), rel=1e-3)
    assert searched(here) == {"learning_rate": rate, "scale": FloatRange(type="float", low=2.0, high=40.0, log=True)}
    assert (here.training.epochs, here.training.batch_size) == (best["epochs"], best["batch_size"])


def test_fixed_phase_searches_only_what_is_new(story: Story) -> None:
    best = ranked(story.trials["training"], story.trials["loss"])[0]
    expected, here = settings(story.file(story.phase_of(best)), best), story.file("decay")
    assert searched(here).keys() == {"weight_decay"}
    for name in ("learning_rate", "epochs", "batch_size", "scale"):
        assert getattr(here.training, name) == expected[name]


def test_the_best_so_far_is_tried_first_as_it_was(story: Story) -> None:
    training, loss, decay = (story.trials[phase] for phase in BUDGETS)
    for before, first in (((training,), loss), ((training, loss), decay)):
        best, again = ranked(*before)[0], first[0]
        of, here = story.phase_of(best), story.phase_of(again)
        assert again.user_attrs[PROPOSED_BY] == f"{of}#{best.number}, of the best so far"
        assert settings(story.file(here), again) == settings(story.file(of), best)


def test_recipe_runs_in_the_first_phase_alone_and_sets_the_floors_of_all(story: Story) -> None:
    recipes = [trial for trials in story.trials.values() for trial in trials if BASELINE in trial.user_attrs]
    assert recipes == story.trials["training"][:1]
    reached = {metric: story.trials["training"][0].user_attrs[metric] for metric in METRICS[1:]}
    assert [story.file(phase).constraints.floors for phase in ("loss", "decay")] == [reached, reached]


def test_table_has_a_line_for_the_untrained_model_the_recipe_and_each_phase(story: Story) -> None:
    output = story.finished.stdout
    lines = output[output.index("   spearman") : output.index("spearman: target")].splitlines()
    assert max(map(len, lines)) <= 80
    table = {line.split()[0]: line.split()[1:] for line in lines if re.match(r"  \w+ +0\.\d{3} ", line)}
    assert list(table) == ["untrained", "v4", *BUDGETS]
    before = max(float(table[name][0]) for name in ("untrained", "v4"))
    for phase, trials in story.trials.items():
        best = next(trial for trial in ranked(story.trials["training"][:1], trials) if trial in trials)
        assert table[phase][:5] == [f"{best.user_attrs[metric]:.3f}" for metric in METRICS]
        assert float(table[phase][5]) == pytest.approx(best.user_attrs["spearman"] - before, abs=0.0011)
        before = max(before, best.user_attrs["spearman"])


def test_best_file_is_of_the_best_phase(story: Story) -> None:
    best = ranked(*story.trials.values())[0]
    phase = story.phase_of(best)
    came_from = yaml.safe_load((story.out / "best.yaml").read_text())["provenance"]
    assert (came_from["study"], came_from["trial"]) == (f"desk-{phase}", best.number)
    assert story.finished.stdout.endswith(f"best configuration: {story.out}/best.yaml (study desk-{phase})\n")


def test_training_the_best_file_reproduces_its_spearman(story: Story) -> None:
    output = story.training.communicate()[0]
    found = re.search(r"^ +spearman +(0\.\d+) +(0\.\d+) +[+-][\d.]+ +reproduced", output, re.MULTILINE)
    assert found, output
    assert float(found[1]) == pytest.approx(float(found[2]), abs=1e-6)
    assert float(found[1]) == pytest.approx(ranked(*story.trials.values())[0].value, abs=1e-6)


def test_plan_that_is_complete_trains_nothing_and_prints_the_same_table(story: Story, rows: Rows) -> None:
    assert story.again.returncode == 0, story.again.stdout
    assert story.again.stdout.endswith(story.finished.stdout[story.finished.stdout.index("   spearman") :])
    assert "trials, " not in story.again.stdout
    assert rows(story.url) == story.rows_then


@pytest.mark.parametrize(("old", "new"), CHANGES, ids=["order", "space", "pairs", "baseline", "earlier", "top"])
def test_changed_plan_of_the_same_name_is_refused_and_changes_no_row(
    story: Story, rows: Rows, tmp_path: Path, old: str, new: str
) -> None:
    assert PLAN.count(old) == 1
    (tmp_path / "plan.yaml").write_text(story.path.read_text().replace(old, new))
    ended = hpo_here(story.url, "run", tmp_path / "plan.yaml", "-o", tmp_path / "out")
    assert ended.returncode == 2, ended.stdout
    assert re.fullmatch(r"hpo: study 'desk-\w+' exists.*", ended.stdout.splitlines()[-1])
    assert rows(story.url) == story.rows_then


@pytest.fixture
def plan(database: URL, incidents_csv: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Plan:
    """Whose first phase is over; trial 2 is the best. A parameter: what its text has in place of what."""
    text = PLAN.replace(*getattr(request, "param", ("", ""))).replace("INCIDENTS", str(incidents_csv))
    (tmp_path / "plan.yaml").write_text(text)
    plan = read_plan(tmp_path / "plan.yaml")
    storage = PostgresStorage(database)
    study = create_study(database, storage, plan.files[0])
    mark(plan, 0, study)
    for spearman, rate in ((0.41, 0.01), (0.43, 0.03), (0.42, 0.02)):
        add(study, plan.files[0], spearman, learning_rate=rate, epochs=1)
    return plan


def begin(plan: Plan, number: int, database: URL) -> tuple[optuna.Study, StudyFile]:
    storage = PostgresStorage(database)
    study = create_study(database, storage, phase_file(plan, number, storage))
    mark(plan, number, study)
    return open_study(storage, study.study_name)


def test_phase_whose_beginning_dies_at_any_write_is_begun_by_the_next(plan: Plan, database: URL, query: Query) -> None:
    query(database, FAULT)
    expected = phase_file(plan, 1, PostgresStorage(database)).space
    for died in itertools.count():
        query(database, "SELECT setval('writes', %s)", 1000 - died)  # the next write but `died` fails
        try:
            begin(plan, 1, database)
            break  # it needs no more writes than that
        except psycopg2.Error:
            query(database, "SELECT setval('writes', 2000)")
        study, file = begin(plan, 1, database)
        words = [trial.user_attrs[PROPOSED_BY] for trial in study.get_trials()]
        assert words == ["training#2, of the best so far", "training#3, of the best so far"]
        assert file.space == expected
        optuna.delete_study(study_name="desk-loss", storage=PostgresStorage(database))
    assert died > 5


def test_what_was_tried_again_is_not_tried_a_third_time(plan: Plan, database: URL) -> None:
    """A phase that finds nothing leaves the best twice: where it was found, and where it was tried first."""
    study, file = begin(plan, 1, database)
    add(study, file, 0.425, learning_rate=0.03, scale=20.0)  # the best of `training` again
    space = phase_file(plan, 2, PostgresStorage(database)).space
    assert isinstance(space, SpaceWithBaselines)
    assert [settings["learning_rate"] for settings in space.first.values()] == [0.03, 0.02]


def test_around_zero_is_the_lowest_part_of_a_logarithmic_range() -> None:
    found = around(FloatRange(type="float", low=1e-4, high=1e-2, log=True), 0.0)
    assert (found.low, found.high) == pytest.approx((1e-4, 1e-3))


def test_phase_after_a_recipe_that_is_worse_than_chance_can_be_opened(plan: Plan, database: URL) -> None:
    study, file = open_study(PostgresStorage(database), "desk-training")
    add(study, file, 0.4, attributes={BASELINE: "v4", "spearman_binary": -0.01}, learning_rate=0.01, epochs=1)
    assert begin(plan, 1, database)[1].name == "desk-loss"


@pytest.mark.parametrize("plan", [("scale: {", "max_similarity: 0.1, scale: {")], indirect=True)
def test_phase_that_fixes_what_cannot_go_with_the_best_is_refused(plan: Plan, database: URL) -> None:
    study, file = open_study(PostgresStorage(database), "desk-training")
    add(study, file, 0.5, attributes={OVERRIDES: {"min_similarity": 0.2}}, learning_rate=0.01, epochs=1)
    with pytest.raises(HpoError, match="min_similarity"):
        phase_file(plan, 1, PostgresStorage(database))
