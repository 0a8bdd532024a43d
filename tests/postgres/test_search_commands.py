"""What people ask of a search: why a trial is as it is, what quality costs, what pruners save; and how it pauses."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import URL

from hpo.best_file import read_best_file
from hpo.cli import main
from hpo.config import searched, trial_config
from hpo.proposals import FIXED, SAMPLER_SEED
from hpo.study import OVERRIDES, create_study, open_study, parameters_of
from hpo.study_file import read_study_file
from objectives.evaluation import METRICS
from storage import terms
from storage.native import PostgresStorage

Ended = subprocess.CompletedProcess[str]
Run = Callable[..., Ended]
Rows = Callable[[URL], dict[str, list[str]]]
STUDY = """name: seen
incidents: {{path: {incidents}, columns: {{duplicate_of: duplicate_of}}}}
pairs: {{held_out: 500}}
mining: {{train_pairs: 400}}
training: {{eval_every_examples: 100}}
pruner: {{kind: median, startup_trials: 1, warmup_examples: 450}}
constraints: {{model_mib: 50}}
space:
  parameters:
    learning_rate: {{type: float, low: 1e-8, high: 0.1, log: true}}
    epochs: {{type: int, low: 1, high: 2}}
    patience: {{type: categorical, choices: {patience}}}
    schedule: {{type: categorical, choices: [linear, cosine, constant_with_warmup]}}
  baselines:
    mild: {{learning_rate: 0.02, epochs: 2, schedule: linear, batch_size: 16}}
budget: {{trials: 5}}
lease_s: 3
"""
BY_HAND = [
    {"learning_rate": 1e-8, "epochs": 2, "schedule": "linear"},  # as bad as untrained when the pruner looks
    {"learning_rate": 1e-8, "epochs": 1, "schedule": "linear"},  # so is this, but over before
    {"learning_rate": 0.01, "epochs": 1, "schedule": "linear"},  # cannot work, with a scale beyond all bounds
]
BASELINE, PRUNED, WEAK, DIVERGED, SEARCHED = range(5)
WAITING, COPIED, FAILED = 0, 1, 6  # of heir
TRACE = "/app/objectives/training.py:68 fit\nKeyError"
COMMANDS = ["trial STUDY 0", "costs STUDY", "prune-audit STUDY", "prune-audit STUDY --json", "status STUDY --json"]
COMMANDS += [f"study {word}" for word in ("pause STUDY", "resume STUDY", "extend STUDY --trials 1")]


@dataclass(frozen=True)
class Searches:
    """`seen` was worked on; `heir` has its trials, one that failed, and a baseline that waits."""

    url: URL
    path: Path  # of heir
    log: str  # of the worker
    seen: optuna.Study
    heir: optuna.Study

    def trial(self, number: int) -> FrozenTrial:
        return self.seen.get_trials(deepcopy=False)[number]


@pytest.fixture(scope="module")
def searches(module_database: URL, incidents_csv: Path, tmp_path_factory: pytest.TempPathFactory, hpo: Run) -> Searches:
    path = tmp_path_factory.mktemp("searches") / "study.yaml"
    patience = json.dumps(["off", *range(20, 50)])  # more than a line of eighty columns, none of which comes to act
    path.write_text(STUDY.format(incidents=incidents_csv, patience=patience))
    seen = create(module_database, path)
    for parameters, attributes in zip(BY_HAND, ({}, {}, {OVERRIDES: {"scale": 1e38}}), strict=True):
        seen.enqueue_trial(parameters, user_attrs=attributes)
    worker = hpo(module_database, "worker", "seen")
    assert worker.returncode == 0, worker.stdout
    path.write_text(path.read_text().replace("name: seen", "name: heir\nwarm_start: [seen]"))
    heir = create(module_database, path)
    heir.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"trace": TRACE, "worker": "box:1"}))
    return Searches(module_database, path, worker.stdout, seen, heir)


def create(url: URL, path: Path) -> optuna.Study:
    return create_study(url, PostgresStorage(url), read_study_file(path))


@pytest.fixture
def small(database: URL, study_yaml: Path) -> optuna.Study:
    """Three trials to come, none begun."""
    return create(database, study_yaml)


def hpo_here(url: URL, *arguments: str | Path) -> Ended:
    """The command line in this process, which has the libraries loaded; both outputs together in `stdout`."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
        patch.setenv("HPO_STORAGE", url.render_as_string(hide_password=False))
        patch.setattr(sys, "argv", ["hpo", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            main()
    return subprocess.CompletedProcess(arguments, int(exited.value.code or 0), out.getvalue())


def told(searches: Searches, name: str, number: int) -> str:
    ended = hpo_here(searches.url, "trial", name, str(number))
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


# hpo trial


def test_baseline_is_told_with_what_it_sets_beyond_the_space_and_its_scores(searches: Searches) -> None:
    output, found = told(searches, "seen", BASELINE), searches.trial(BASELINE).user_attrs
    assert output.startswith("trial 0 of seen: COMPLETE after ")
    assert f", by {found['worker']}\nproposed: baseline mild\n" in output
    rows = [line.strip().split(maxsplit=2) for line in output.splitlines()]
    assert ["learning_rate", "0.02", "1e-08 to 0.1, logarithmic"] in rows
    assert ["batch_size", "16", "not searched here"] in rows
    assert "completed at epoch 2.00; the best was at " in output
    assert output.rstrip().endswith(", ".join(f"{metric} {found[metric]:.4f}" for metric in METRICS))


def test_curve_of_a_trial_has_a_row_for_each_report(searches: Searches) -> None:
    reports = searches.trial(BASELINE).intermediate_values
    rows = [line.split() for line in told(searches, "seen", BASELINE).splitlines() if "%" in line]
    assert [row[:3] for row in rows] == [
        [str(step), f"{step / 800:.0%}", f"{value:.4f}"] for step, value in sorted(reports.items())
    ]
    assert len(rows) == 8


def test_searched_trial_is_told_with_its_sampler(searches: Searches) -> None:
    seed = searches.trial(SEARCHED).user_attrs[SAMPLER_SEED]
    assert f"\nproposed: tpe, from 4 trials (sampler's seed {seed})\n" in told(searches, "seen", SEARCHED)


def test_pruned_trial_is_told_with_what_the_pruner_saw(searches: Searches) -> None:
    assert searches.trial(PRUNED).state == TrialState.PRUNED
    output = told(searches, "seen", PRUNED)
    assert "trial 1 of seen: PRUNED after " in output
    assert "\nproposed: somebody by hand\n" in output
    assert "\npruned, median: 0." in output
    assert " at 500 examples would be 0." in output
    assert "\npruned at epoch 1.32; the best was at " in output  # with the batch that came to 500 examples


def test_trial_below_a_floor_is_told_with_what_it_lacks(searches: Searches) -> None:
    weak, baseline = searches.trial(WEAK), searches.trial(BASELINE)
    assert weak.state == TrialState.COMPLETE
    lacks = baseline.user_attrs["roc_auc"] - weak.user_attrs["roc_auc"]
    assert lacks > 0
    assert f"\nbeyond the study's constraint on roc_auc, by {lacks:.4g}\n" in told(searches, "seen", WEAK)


def test_trial_that_cannot_work_is_told_with_its_reason(searches: Searches) -> None:
    output = told(searches, "seen", DIVERGED)
    assert "trial 3 of seen: PRUNED after " in output
    assert "\ncannot work: Diverged " in output
    assert "constraint" not in output


def test_failed_trial_is_told_with_its_trace(searches: Searches) -> None:
    output = told(searches, "heir", FAILED)
    assert output.startswith("trial 6 of heir: FAIL, by box:1\nproposed: not yet, or by another program\n")
    assert output.endswith(f"failed:\n{TRACE}\n")


def test_waiting_trial_is_told_with_what_it_will_be_trained_with(searches: Searches) -> None:
    output = told(searches, "heir", WAITING)
    assert output.startswith("trial 0 of heir: WAITING\nproposed: baseline mild\n")
    rows = [line.split()[:2] for line in output.splitlines()]
    assert ["batch_size", "16"] in rows
    assert ["learning_rate", "0.02"] in rows


def test_copied_trial_is_told_with_its_origin(searches: Searches) -> None:
    output = told(searches, "heir", COPIED)
    assert output.startswith("trial 1 of heir: COMPLETE after ")
    assert "\nproposed: not here, it is a copy of seen#0\n" in output
    assert output.partition("copy of")[2].splitlines()[1:] == told(searches, "seen", 0).splitlines()[2:]


@pytest.mark.parametrize("number", ["5", "99"])
def test_trial_that_is_not_there_is_one_sentence(searches: Searches, number: str) -> None:
    ended = hpo_here(searches.url, "trial", "seen", number)
    assert ended.returncode == 2
    assert ended.stdout == f"hpo: study 'seen' has no trial {number}; it has 5, from 0 on\n"


def test_reports_that_are_no_numbers_are_shown_as_they_are(small: optuna.Study, database: URL) -> None:
    """Of another program."""
    small.add_trial(create_trial(value=0.5, intermediate_values={1: float("nan"), 2: float("-inf"), 3: 0.5}))
    ended = hpo_here(database, "trial", "small", "1")
    assert ended.returncode == 0
    assert " nan " in ended.stdout


def test_trial_fits_eighty_columns_when_it_is_piped(searches: Searches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for output in (told(searches, name, number) for name in ("seen", "heir") for number in range(5)):
        sentences = ("pruned, ", "cannot work: ", "spearman ")
        assert max(len(line) for line in output.splitlines() if not line.startswith(sentences)) <= 80
        assert "\x1b" not in output


def test_recipe_trains_with_all_that_it_sets_and_its_best_file_is_the_same_recipe(
    searches: Searches, database: URL, tmp_path: Path
) -> None:
    recipe, file = searches.trial(BASELINE), open_study(PostgresStorage(searches.url), "seen")[1]
    assert (recipe.params.keys(), recipe.user_attrs[OVERRIDES]) == (searched(file).keys(), {"batch_size": 16})
    assert "'schedule': 'linear', 'batch_size': 16}" in searches.log
    assert hpo_here(searches.url, "export", "seen", "-o", tmp_path / "best.yaml").returncode == 0
    assert read_best_file(tmp_path / "best.yaml")[0].provenance.baseline == "mild"
    head, tail = searches.path.read_text().split(
        "mild: {learning_rate: 0.02, epochs: 2, schedule: linear, batch_size: 16}"
    )
    (tmp_path / "again.yaml").write_text(f"{head}earlier: best.yaml{tail}".replace("warm_start: [seen]", ""))
    again = create(database, tmp_path / "again.yaml").get_trials()[0]
    trained, to_train = (
        trial_config(file, values).model_dump(exclude={"incidents": {"dataset"}})
        for values in (parameters_of(recipe), again.system_attrs[FIXED] | again.user_attrs[OVERRIDES])
    )
    assert to_train == trained


# hpo costs, hpo prune-audit


def test_costs_are_of_the_trials_that_no_other_beats(searches: Searches) -> None:
    ended = hpo_here(searches.url, "costs", "seen")
    assert ended.returncode == 0
    rows = [line.split() for line in ended.stdout.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    complete = [trial for trial in searches.seen.get_trials() if trial.state == TrialState.COMPLETE]
    best = max(complete, key=lambda trial: trial.value or 0.0)
    assert rows[0][:2] == [str(best.number), f"{best.value:.3f}"]
    assert rows[0][4] == f"{best.user_attrs['model_mib']:,.0f}"
    assert {int(row[0]) for row in rows} <= {trial.number for trial in complete}
    quickest = max(complete, key=lambda trial: trial.user_attrs["texts_per_s"])
    assert str(quickest.number) in [row[0] for row in rows]
    assert ["wanted", "≤", "50"] in [line.split() for line in ended.stdout.splitlines()]
    assert max(map(len, ended.stdout.splitlines())) <= 80


def test_audit_compares_every_pruner_with_the_studys_own(searches: Searches) -> None:
    ended = hpo_here(searches.url, "prune-audit", "seen")
    assert ended.returncode == 0
    *_, last = lines = ended.stdout.splitlines()
    names = [line.split("  ")[1] for line in lines if "%" in line]
    assert names == ["median (this study's)", "percentile", "successive_halving", "hyperband"]
    cut = [trial for trial in searches.seen.get_trials() if trial.state == TrialState.PRUNED and trial.last_step]
    assert last.startswith(f"{len(cut)} of the trials were pruned when they ran, so their curves are cut short")
    assert max(map(len, lines[:-1])) <= 80


def test_audit_as_json_is_one_object(searches: Searches) -> None:
    found = json.loads(hpo_here(searches.url, "prune-audit", "seen", "--json").stdout)
    own = found["median (this study's)"]
    assert own["pruned"] >= 1
    assert 0 <= own["saved"] < 1
    assert own["missed"] == 0
    assert {key for replayed in found.values() for key in replayed} == {"pruned", "saved", "missed"}


@pytest.mark.parametrize("command", ["costs", "prune-audit"])
def test_study_without_a_completed_trial_is_a_sentence(small: optuna.Study, database: URL, command: str) -> None:
    ended = hpo_here(database, command, "small")
    assert (ended.returncode, ended.stdout.count("\n")) == (2, 1)
    assert "no completed trial" in ended.stdout


def test_pause_is_said_and_shown_by_status_until_it_is_resumed(small: optuna.Study, database: URL) -> None:
    paused = "study small is paused; let it go on: hpo study resume small\n"
    for _ in range(2):
        ended = hpo_here(database, "study", "pause", "small")
        assert (ended.returncode, ended.stdout) == (0, paused)
    status = hpo_here(database, "status", "small").stdout
    assert status == f"small: 0/3 trials, 0 running\n{paused}"
    assert json.loads(hpo_here(database, "status", "small", "--json").stdout)["paused"] == paused.rstrip()
    ended = hpo_here(database, "study", "resume", "small")
    assert ended.stdout == "study small goes on; start its workers again if they are gone: hpo worker small\n"
    assert ended.returncode == 0
    assert hpo_here(database, "status", "small").stdout == "small: 0/3 trials, 0 running\n"
    assert json.loads(hpo_here(database, "status", "small", "--json").stdout)["paused"] is None
    ended = hpo_here(database, "study", "resume", "small")
    assert (ended.returncode, ended.stdout) == (2, "hpo: study small is not paused\n")


def test_ended_study_says_why_and_goes_on_when_it_is_extended(small: optuna.Study, database: URL) -> None:
    terms.end(PostgresStorage(database).ask, small._study_id, "its 2 hours are over")
    assert hpo_here(database, "status", "small").stdout.splitlines()[1:] == ["ended: its 2 hours are over"]
    assert json.loads(hpo_here(database, "status", "small", "--json").stdout)["ended"] == "its 2 hours are over"
    ended = hpo_here(database, "study", "extend", "small", "--trials", "4")
    assert (ended.returncode, ended.stdout) == (0, "study small has 7 trials in all; work on it: hpo worker small\n")
    found = json.loads(hpo_here(database, "status", "small", "--json").stdout)
    assert (found["budget"], found["ended"]) == (7, None)


def test_hours_are_extended_where_there_is_a_limit(database: URL, study_yaml: Path) -> None:
    limits = "{trials: 3, hours: 1.5, gpu_hours: 4}"
    study_yaml.write_text(study_yaml.read_text().replace("{trials: 3}", limits))
    create(database, study_yaml)
    ended = hpo_here(database, "study", "extend", "small", "--hours", "0.5", "--gpu-hours", "2")
    assert ended.stdout == "study small has 3 trials, 2 hours, 6 GPU-hours in all; work on it: hpo worker small\n"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "hpo: by how much? Give --trials, --hours or --gpu-hours\n"),
        (["--hours", "1"], "hpo: study small has no limit of hours; nothing to extend\n"),
        (["--gpu-hours", "1"], "hpo: study small has no limit of gpu_hours; nothing to extend\n"),
        (["--trials", "-1"], "greater than or equal to 0"),
    ],
)
def test_extension_by_nothing_is_refused_with_a_sentence_and_changes_no_row(
    small: optuna.Study, database: URL, rows: Rows, options: list[str], sentence: str
) -> None:
    before = rows(database)
    ended = hpo_here(database, "study", "extend", "small", *options)
    assert ended.returncode == 2
    assert sentence in ended.stdout
    assert rows(database) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_study_that_does_not_exist_is_one_line_that_names_those_there(
    small: optuna.Study, database: URL, command: str
) -> None:
    ended = hpo_here(database, *command.replace("STUDY", "smal").split())
    assert (ended.returncode, ended.stdout) == (2, "hpo: no study 'smal' in this database; there are: small\n")
