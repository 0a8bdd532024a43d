"""`hpo confirm`: real runs by several workers, kills in between, and one look at test."""

from __future__ import annotations

import io
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import URL

from hpo.config import trial_config
from hpo.confirm import FIRST_SEED, PLAN, confirm
from hpo.confirmed import CONFIRMED, Confirmation, confirmation_of, in_words
from hpo.ending import end_if_due
from hpo.ensemble import LOOKS
from hpo.errors import InputError, Interrupted, SetupError
from hpo.pruning import WHY_PRUNED
from hpo.standing import CONFIRMS, JUDGES, key_of, seed_of, standing_of, why_skipped
from hpo.study import BASELINE, OVERRIDES, create_study, open_study, parameters_of, refuse_other_versions
from hpo.study_file import read_study_file
from objectives.evaluation import METRICS, RESAMPLES
from storage import terms
from storage.native import PostgresStorage

Start = Callable[..., subprocess.Popen[str]]
Run = Callable[..., subprocess.CompletedProcess[str]]
SEEDS = 4
COMMAND = f"from hpo.confirm import confirm; confirm('desk', 2, {SEEDS}, 2)"
SPACE = """space:
  parameters:
    learning_rate: {type: float, low: 1e-3, high: 0.1, log: true}
    epochs: {type: int, low: 1, high: 2}
  baselines:
    v4: {learning_rate: 1e-5, epochs: 2}
    sharp: {learning_rate: 0.02, epochs: 1, scale: 10.0}
"""
BOUNDS = {"learning_rate": FloatDistribution(1e-3, 0.1, log=True), "epochs": IntDistribution(1, 2)}


@dataclass(frozen=True)
class Confirmed:
    """A study, confirmed by a worker that was killed, then by the command with two; and the command once more."""

    url: URL
    home: Path
    killed: FrozenTrial  # as it was left
    output: str
    again: str

    def open(self, name: str = "desk") -> optuna.Study:
        return open_study(PostgresStorage(self.url), name)[0]

    def runs(self) -> list[FrozenTrial]:
        return self.open("desk/confirm").get_trials()

    def found(self) -> Confirmation:
        found = confirmation_of(self.open())
        assert found is not None
        return found


@pytest.fixture(scope="module")
def confirmed(
    module_database: URL, incidents_csv: Path, tmp_path_factory: pytest.TempPathFactory, checkpoints: Path, start: Start
) -> Confirmed:
    folder = tmp_path_factory.mktemp("desk")
    create_study(module_database, PostgresStorage(module_database), read_study_file(write(folder, incidents_csv)))
    worker = start(module_database, "-m", "hpo", "worker", "desk")
    log = worker.communicate(timeout=120)[0]
    assert worker.returncode == 0, log
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as again:
        patch.setenv("HPO_STORAGE", module_database.render_as_string(hide_password=False))
        patch.setenv("HPO_HOME", str(checkpoints.parent))
        patch.chdir(folder)
        begin(patch, top=2)
        killed = kill_in_the_middle(start(module_database, "-m", "hpo", "worker", "desk/confirm"), module_database)
        command = start(module_database, "-c", COMMAND, cwd=folder)
        output = command.communicate(timeout=120)[0]
        assert command.returncode == 0, output
        again.truncate(0)
        again.seek(0)
        confirm("desk", 2, SEEDS + 3, 2)
    return Confirmed(module_database, checkpoints.parent, killed, output, again.getvalue())


def kill_in_the_middle(worker: subprocess.Popen[str], url: URL) -> FrozenTrial:
    """With the trial in hand, which is returned."""
    assert worker.stdout
    while "trial 2 started" not in worker.stdout.readline():
        pass
    study = open_study(PostgresStorage(url), "desk/confirm")[0]
    while True:  # stopped between two trials it has nothing in hand
        worker.send_signal(signal.SIGSTOP)
        if running := study.get_trials(states=(TrialState.RUNNING,)):
            worker.kill()
            return running[0]
        worker.send_signal(signal.SIGCONT)


def write(folder: Path, incidents: Path, extra: str = "budget: {trials: 4}\n", name: str = "desk") -> Path:
    path = folder / "study.yaml"
    path.write_text(
        f"name: {name}\nincidents: {{path: {incidents}, columns: {{duplicate_of: duplicate_of}}}}\n"
        "pairs: {held_out: 1000}\nmining: {train_pairs: 400}\ntraining: {eval_every_examples: 200}\n"
        f'constraints: {{floors: "off"}}\nlease_s: 3\n{SPACE}{extra}'
    )
    return path


def test_run_of_a_worker_that_was_killed_is_run_by_another(confirmed: Confirmed) -> None:
    run = confirmed.runs()[confirmed.killed.number]
    assert run.state == TrialState.COMPLETE
    assert run.user_attrs["worker"] not in {before.user_attrs["worker"] for before in confirmed.runs()[:2]}
    assert {run.state for run in confirmed.runs()} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING}


def test_two_workers_share_the_runs(confirmed: Confirmed) -> None:
    by = Counter(run.user_attrs["worker"] for run in confirmed.runs() if run.state == TrialState.COMPLETE)
    assert len(by) == 3, by  # and the one that was killed


def test_seeds_are_the_same_for_all_new_and_in_order(confirmed: Confirmed) -> None:
    runs = confirmed.runs()
    numbers = confirmed.open()._storage.get_study_system_attrs(confirmed.open()._study_id)[PLAN]["trials"]
    seeds = range(FIRST_SEED, FIRST_SEED + 2 * SEEDS)
    assert [key_of(run) for run in runs] == [(number, seed) for seed in seeds for number in numbers]
    assert [run.user_attrs[JUDGES] for run in runs] == [seed >= FIRST_SEED + SEEDS for _, seed in map(key_of, runs)]
    file = open_study(PostgresStorage(confirmed.url), "desk/confirm")[1]
    assert all(trial_config(file, parameters_of(run), run.number).seed == seed_of(run) for run in runs)


def test_run_is_trained_as_the_trial_that_it_confirms(confirmed: Confirmed) -> None:
    of = {trial.number: trial for trial in confirmed.open().get_trials()}
    file, desk = (open_study(PostgresStorage(confirmed.url), name)[1] for name in ("desk/confirm", "desk"))
    for run in confirmed.runs():
        trial = of[run.user_attrs[CONFIRMS]]
        assert run.user_attrs.get(BASELINE) == trial.user_attrs.get(BASELINE)
        if run.state == TrialState.COMPLETE:
            ours = trial_config(file, parameters_of(run), run.number)
            theirs = trial_config(desk, parameters_of(trial), trial.number)
            same = {"seed": 0, "incidents": file.incidents}  # which the database holds from now on
            assert ours.model_copy(update=same) == theirs.model_copy(update=same)
    assert {run.user_attrs[OVERRIDES].get("scale") for run in confirmed.runs()} == {None, 10.0}


def test_other_seeds_give_other_scores(confirmed: Confirmed) -> None:
    winner = [run.value for run in confirmed.runs() if run.user_attrs[CONFIRMS] == confirmed.found().winner]
    scores = [score for score in winner if score is not None]
    assert len(set(scores)) == len(scores) > SEEDS


def test_what_was_dropped_costs_nothing_and_says_why(confirmed: Confirmed) -> None:
    skipped = [run for run in confirmed.runs() if run.state == TrialState.PRUNED]
    standing = standing_of(confirmed.runs())
    assert standing.race.dropped  # v4 hardly trains
    assert {run.user_attrs[CONFIRMS] for run in skipped} >= standing.race.dropped.keys()
    for run in skipped:
        assert run.user_attrs[WHY_PRUNED]
        assert not run.intermediate_values
        assert not run.user_attrs.keys() & {"train_s", "device", *METRICS}
        assert run.duration is not None
        assert run.duration.total_seconds() < 1


def test_test_is_scored_by_the_runs_that_judge_and_by_no_other(confirmed: Confirmed) -> None:
    for run in confirmed.runs():
        assert ("test" in run.user_attrs) == (run.user_attrs[JUDGES] and run.state == TrialState.COMPLETE)
    tests = [run.user_attrs["test"] for run in confirmed.runs() if "test" in run.user_attrs]
    assert len(tests) == 2 * SEEDS
    for test in tests:
        assert test.keys() == {*METRICS, "threshold", "replicates"}
        assert len(test["replicates"]) == RESAMPLES


def test_every_run_is_judged_on_the_same_resampled_incidents(confirmed: Confirmed) -> None:
    tests = [np.array(run.user_attrs["test"]["replicates"]) for run in confirmed.runs() if "test" in run.user_attrs]
    assert np.corrcoef(tests).min() > 0.5  # it is the incidents that move them, and all of them alike


def test_result_is_kept_with_the_study_as_its_runs_say(confirmed: Confirmed) -> None:
    found, runs = confirmed.found(), {key_of(run): run for run in confirmed.runs()}
    assert found.study == "desk/confirm"
    assert found.runs[0].trial == found.winner
    assert found.judged_seeds == SEEDS
    for row in found.runs:
        values = [runs[row.trial, FIRST_SEED + place].value for place in range(row.seeds)]
        assert row.mean["spearman"] == pytest.approx(np.mean([value for value in values if value is not None]))
        assert (row.test is not None) == (
            row.baseline == found.against or row.trial in (found.winner, found.challenger)
        )
    one, other = (row.test for row in sorted((r for r in found.runs if r.test), key=lambda r: r.baseline is not None))
    assert one
    assert other
    assert found.gain_on_test[0] == pytest.approx(one["spearman"] - other["spearman"])


def test_second_call_says_the_same_and_looks_at_test_no_second_time(confirmed: Confirmed) -> None:
    study = confirmed.open()
    [look] = study._storage.get_study_system_attrs(study._study_id)[LOOKS]
    assert look["confirmed"] == "desk/confirm"
    assert "for this, and never before" in confirmed.again
    assert confirmed.output.endswith(confirmed.again)
    assert len(confirmed.runs()) == 4 * 2 * SEEDS


def test_output_is_a_table_of_eighty_columns_and_a_sentence(confirmed: Confirmed) -> None:
    lines = confirmed.again.splitlines()
    table, words = lines[:-3], lines[-3:]
    assert max(map(len, table)) <= 80
    assert table[1].split() == ["configuration", "seeds", "spearman", "gain", "over", "baseline", "(95", "%)"]
    assert words[0].startswith("3 of 4 configurations were left") or words[0].startswith("2 of 4 configurations")
    assert words[1] == in_words(confirmed.found())
    assert re.fullmatch(r"test was looked at on \d{4}-\d\d-\d\d for this, and never before", words[2])


def test_nothing_of_the_runs_is_kept_and_nothing_of_the_study_is_lost(confirmed: Confirmed) -> None:
    assert sorted(path.name for path in (confirmed.home / "models" / "desk").iterdir()) == ["0", "1", "2", "3"]
    assert not list((confirmed.home / "checkpoints" / "desk" / "confirm").iterdir())


# Played by hand: what is told here stands for trainings


@pytest.fixture
def searched(database: URL, incidents_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> URL:
    """A study of two baselines and three trials that have ended, in a folder of its own."""
    monkeypatch.setenv("HPO_STORAGE", database.render_as_string(hide_password=False))
    monkeypatch.chdir(tmp_path)
    make(database, write(tmp_path, incidents_csv))
    return database


def make(url: URL, path: Path, *, baselines: bool = True, others: bool = True) -> None:
    study = create_study(url, PostgresStorage(url), read_study_file(path))
    for trial in study.get_trials():
        study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    rates = {0.01: {BASELINE: "v4"}, 0.02: {BASELINE: "sharp"}} if baselines else {}
    rates |= {0.03: {}, 0.04: {}, 0.05: {}} if others else {}
    for rate, attributes in rates.items():
        tell(study, rate, 0.5 + rate, attributes)


def tell(study: optuna.Study, rate: float, score: float, attributes: Mapping[str, str] = MappingProxyType({})) -> None:
    found: dict[str, Any] = {**dict.fromkeys(METRICS, score), **attributes}
    params = {"learning_rate": rate, "epochs": 1}
    study.add_trial(create_trial(params=params, distributions=BOUNDS, value=score, user_attrs=found))


V4, SHARP, C, B, A = 2, 3, 4, 5, 6  # A has the highest score


def play(
    url: URL, means: Mapping[int, float], on_test: Mapping[int, float] | None = None, noise: float = 0.002
) -> None:
    """Tells every run that is still needed as if it had been trained: so much for a trial, and noise."""
    storage = PostgresStorage(url)
    study, file = open_study(storage, "desk/confirm")
    rng, resampled = np.random.default_rng(0), np.random.default_rng(1).normal(0, 0.002, (9, RESAMPLES))
    while True:
        end_if_due(storage, study, file)
        claim = storage.claim(study._study_id, "by hand")
        if claim.trial_id is None:
            break
        run = storage.get_trial(claim.trial_id)
        trial, one = optuna.Trial(study, claim.trial_id), run.user_attrs[CONFIRMS]
        if why_skipped(standing_of(study.get_trials(deepcopy=False)), run):
            study.tell(trial, state=TrialState.PRUNED)
            continue
        score = means[one] + noise * rng.standard_normal()
        for metric in METRICS:
            trial.set_user_attr(metric, score)
        if run.user_attrs[JUDGES]:
            there = (on_test or means)[one] + noise * rng.standard_normal()
            test = dict.fromkeys(METRICS, there) | {"replicates": list(there + resampled[one])}
            trial.set_user_attr("test", test)
        study.tell(trial, score)


def by_hand(
    monkeypatch: pytest.MonkeyPatch, url: URL, means: Mapping[int, float], on_test: Mapping[int, float] | None = None
) -> Confirmation:
    monkeypatch.setattr("hpo.confirm.work_in_view", lambda *_: play(url, means, on_test))
    confirm("desk", 3, SEEDS, 1)
    found = confirmation_of(open_study(PostgresStorage(url), "desk")[0])
    assert found is not None
    return found


def begin(monkeypatch: pytest.MonkeyPatch, top: int = 3, seeds: int = SEEDS) -> None:
    """As if it were stopped before any run."""

    def stop(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("hpo.confirm.work_in_view", stop)
        with pytest.raises(Interrupted):
            confirm("desk", top, seeds, 1)


def keys(url: URL) -> list[tuple[int, int]]:
    return [key_of(run) for run in open_study(PostgresStorage(url), "desk/confirm")[0].get_trials()]


EQUAL = dict.fromkeys((V4, SHARP, A, B, C), 0.6)


def test_tie_is_called_indistinguishable(
    searched: URL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = by_hand(monkeypatch, searched, EQUAL)
    assert found.verdict == "indistinguishable"
    assert f"is indistinguishable from the baseline {found.against}: spearman " in capsys.readouterr().out


def test_gain_is_called_better_than_the_best_baseline(
    searched: URL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = by_hand(monkeypatch, searched, EQUAL | {B: 0.66, SHARP: 0.63})
    assert (found.winner, found.against, found.challenger) == (B, "sharp", None)
    assert (found.verdict, found.why_stopped) == ("better", "1 of 5 configurations was left after 3 of 4 seeds")
    assert found.gain_on_test[1] < 0.03 < found.gain_on_test[2]
    assert f"\non test, trial {B} is better than the baseline sharp: spearman +0.0" in capsys.readouterr().out
    assert {run.trial: run.seeds for run in found.runs} == dict.fromkeys((V4, SHARP, A, B, C), 3)
    assert found.judged_seeds == SEEDS


def test_what_is_better_on_validation_alone_is_indistinguishable_and_test_chooses_nothing(
    searched: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = by_hand(monkeypatch, searched, EQUAL | {B: 0.66}, EQUAL | {A: 0.9})
    assert (found.winner, found.verdict) == (B, "indistinguishable")
    assert found.gain[1] > 0
    assert {run.trial for run in found.runs if run.test} == {B, V4 if found.against == "v4" else SHARP}


def test_baseline_that_leads_is_the_winner_and_said_to_be_better(
    searched: URL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = by_hand(monkeypatch, searched, EQUAL | {SHARP: 0.66, C: 0.62})
    assert (found.winner, found.challenger, found.against, found.verdict) == (SHARP, C, "sharp", "worse")
    words = (
        f"the baseline sharp leads on validation; on test, trial {C} is worse than the baseline sharp: spearman -0.0"
    )
    assert words in capsys.readouterr().out


def test_confirmation_goes_on_as_it_was_begun_whatever_is_asked_or_was_found_since(
    searched: URL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(monkeypatch, top=2)
    before = keys(searched)
    assert {one for one, _ in before} == {A, B, V4, SHARP}
    study = open_study(PostgresStorage(searched), "desk")[0]
    tell(study, 0.06, 0.9)
    begin(monkeypatch, top=3, seeds=9)
    assert keys(searched) == before
    said = "4 configurations on 4 seeds, then the winner and its baseline on 4 others: 24 runs at most\n"
    assert capsys.readouterr().out == said * 2


def test_runs_that_one_who_was_killed_had_not_added_are_added_by_the_next(
    searched: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    added, add = [0], optuna.Study.enqueue_trial

    def die(study: optuna.Study, *arguments: Any, **more: Any) -> None:
        added[0] += 1
        if added[0] > 7:
            raise KeyboardInterrupt
        add(study, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "enqueue_trial", die)
        with pytest.raises(KeyboardInterrupt):
            confirm("desk", 3, SEEDS, 1)
    study = open_study(PostgresStorage(searched), "desk/confirm")[0]
    with pytest.raises(SetupError, match="half made"):
        refuse_other_versions(study)  # as workers do
    begin(monkeypatch)
    assert keys(searched) == [(one, FIRST_SEED + place) for place in range(2 * SEEDS) for one in (A, B, C, V4, SHARP)]


def test_one_who_was_killed_after_looking_at_test_has_looked_for_the_next(
    searched: URL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = open_study(PostgresStorage(searched), "desk")[0]
    looks = [{"at": "2026-01-02T03:04:05+00:00"}, {"at": "2026-02-03T03:04:05+00:00", "confirmed": "desk/confirm"}]
    study._storage.set_study_system_attr(study._study_id, LOOKS, looks)
    by_hand(monkeypatch, searched, EQUAL)
    assert study._storage.get_study_system_attrs(study._study_id)[LOOKS] == looks
    assert capsys.readouterr().out.endswith("test was looked at on 2026-02-03 for this, and 1 time before\n")


def test_confirmation_of_a_study_that_was_deleted_is_not_taken_for_that_of_its_heir(
    searched: URL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin(monkeypatch)
    optuna.delete_study(study_name="desk", storage=PostgresStorage(searched))
    make(searched, tmp_path / "study.yaml")
    with pytest.raises(InputError, match="desk/confirm confirms an earlier study of that name; delete it first"):
        confirm("desk", 3, SEEDS, 1)


def test_equal_configurations_run_once_and_those_below_a_floor_do_not(
    searched: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(PostgresStorage(searched), "desk")[0]
    tell(study, 0.05, 0.7)
    begin(monkeypatch, top=9)
    assert {one for one, _ in keys(searched)} == {7, B, C, V4, SHARP}  # 7 is A again, and better


def test_worker_that_waits_for_the_race_takes_the_run_of_one_that_died(
    searched: URL, monkeypatch: pytest.MonkeyPatch, hpo: Run
) -> None:
    begin(monkeypatch, top=1, seeds=3)
    storage = PostgresStorage(searched)
    study = open_study(storage, "desk/confirm")[0]
    for _ in range(3 * 3 - 1):
        claim = storage.claim(study._study_id, "by hand")
        assert claim.trial_id is not None
        trial = optuna.Trial(study, claim.trial_id)
        for metric in METRICS:
            trial.set_user_attr(metric, 0.5)
        study.tell(trial, 0.5 + 0.01 * storage.get_trial(claim.trial_id).number)
    lost = storage.claim(study._study_id, "by one that dies").trial_id
    assert lost is not None
    worker = hpo(searched, "worker", "desk/confirm")
    assert worker.returncode == 0, worker.stdout
    others = PostgresStorage(searched)  # the first one takes the run for its own
    runs, ended = others.get_all_trials(study._study_id), terms.read(others.ask, study._study_id)
    assert (runs[8]._trial_id, runs[8].state) == (lost, TrialState.COMPLETE)
    assert worker.stdout.index("trial 8 started") < worker.stdout.index("trial 9 started")
    assert ended is not None
    assert ended.ended == standing_of(runs).ended == "2 of 3 configurations were left after 3 of 3 seeds"


def test_model_that_was_pinned_for_the_study_is_not_asked_of_the_hub_again(
    database: URL, incidents_csv: Path, tmp_path: Path
) -> None:
    pinned = {"model": "desk/tickets", "model_revision": f"desk/tickets@{'1' * 40}"}
    file = read_study_file(write(tmp_path, incidents_csv)).model_copy(update=pinned)
    create_study(database, PostgresStorage(database), file)  # the tests are offline
    assert open_study(PostgresStorage(database), "desk")[1].model_revision == pinned["model_revision"]


# Refusals


@pytest.mark.parametrize(
    ("change", "seeds", "sentence"),
    [
        ({"others": False}, 3, "study 'desk' has no completed trial within its constraints but baselines"),
        ({"baselines": False}, 3, "study 'desk' has no completed baseline; nothing to compare its best with"),
        ({}, 2, "--seeds 2: at least 3 are needed to tell a gain from chance"),
        ({"extra": "splits: {test: 0.0}\n"}, 3, "the test split cannot judge: no positive and no negative pair"),
    ],
)
def test_what_cannot_be_confirmed_is_refused_before_anything_is_made(
    database: URL,
    incidents_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    seeds: int,
    sentence: str,
) -> None:
    monkeypatch.setenv("HPO_STORAGE", database.render_as_string(hide_password=False))
    extra = "budget: {trials: 4}\n" + change.pop("extra", "")
    make(database, write(tmp_path, incidents_csv, extra), **change)
    with pytest.raises(InputError, match=re.escape(sentence)):
        confirm("desk", 3, seeds, 1)
    study = open_study(PostgresStorage(database), "desk")[0]
    assert optuna.get_all_study_names(study._storage) == ["desk"]
    assert not study._storage.get_study_system_attrs(study._study_id).keys() & {PLAN, LOOKS, CONFIRMED}


def test_confirmation_is_not_confirmed(searched: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(monkeypatch)
    with pytest.raises(InputError, match="desk/confirm confirms another study already; give a study that searches"):
        confirm("desk/confirm", 3, 3, 1)


def test_name_of_a_confirmation_is_no_name_for_a_study_file(tmp_path: Path, incidents_csv: Path) -> None:
    path = write(tmp_path, incidents_csv, name="desk/confirm")
    with pytest.raises(
        InputError, match=r"study.yaml:1: name: .*names that end with /confirm are made by `hpo confirm`"
    ):
        read_study_file(path)


def test_other_names_with_a_slash_are_refused(tmp_path: Path, incidents_csv: Path) -> None:
    with pytest.raises(InputError, match=r"study.yaml:1: name: "):
        read_study_file(write(tmp_path, incidents_csv, name="desk/confirms"))
