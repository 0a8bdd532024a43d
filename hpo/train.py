"""What a best.yaml, a trial and a study's pairs are for: a trained model, and scores that anybody can check."""

from __future__ import annotations

import csv
import io
import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from hpo.best_file import BestFile, job_of, read_best_file
from hpo.config import StudyFile, trial_config
from hpo.datasets import cache_folder, for_training
from hpo.datasets import fetch as fetch_incidents
from hpo.display import duration, make_console
from hpo.errors import HpoError, InputError, Interrupted, SetupError
from hpo.export import best_files
from hpo.files import make_folder, write_text
from hpo.model_card import model_card
from hpo.model_folder import ModelFacts, write_facts
from hpo.reproduction import compared, comparison_table, verdict
from hpo.run import open_by_name
from hpo.study import COPIED, ours, trial_of
from hpo.training_view import TrainingView
from objectives.config import Job
from objectives.data import load_data, needs_model, train_pairs
from objectives.grades import grade
from objectives.model_files import fetch
from storage.native import PostgresStorage

if TYPE_CHECKING:
    from objectives.finetune import Finetuned, Result
    from objectives.progress import Progress, Verdict

OUT_OF_MEMORY = (
    "out of memory. In best.yaml, set loss.mini_batch_size to half of the batch or less (MultipleNegativesRankingLoss "
    "is then the Cached one, by name), or training_arguments.gradient_checkpointing to true"
)
ENDED = {
    "completed": "completed",
    "early_stopping": "stopped early",
    "overtaken": "stopped where the pruner had stopped its trial,",
}


def train_again(source: str, out: Path) -> None:
    """`source`: the path of a best.yaml, or STUDY#N. The same fine-tuning as the trial's, with a report that prints.

    `out` appears whole or not at all. Raises InputError, DataError, ModelError, SetupError, Interrupted, HpoError.
    """
    console = make_console()
    try:
        best, job, storage = _asked_for(source)
        _refuse(out)
        for_training(job.config.incidents, storage)
        load_data(job.config, cache_folder())  # bad input is found before torch is loaded
        fetch(job.config.model, job.config.model_revision)
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        trained = _train(best, job, console)
        rows = compared(best, trained.result)
        said = verdict(rows, best, job.config, trained.result)
        console.print(comparison_table(rows))
        no_head = [f"without a match head: {trained.result.no_head}"] if trained.result.no_head else []
        console.print(*no_head, said, sep="\n", soft_wrap=not console.is_terminal)
        _save(trained, best, job, said, out)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {out} was not made. Run the same command to train it from the beginning") from None
    console.print(f"model: {out}", soft_wrap=True)


def _asked_for(source: str) -> tuple[BestFile, Job, PostgresStorage | None]:
    name, _, number = source.rpartition("#")
    if os.path.exists(source):
        return *read_best_file(Path(source)), None
    if not name or not (number.isascii() and number.isdecimal()):
        raise InputError(f"{source}: no such file; give one that `hpo export` wrote, or STUDY#N for a study's trial N")
    study, file = open_by_name(name)
    [best] = best_files(study, file, [_completed(study, int(number))])
    return best, job_of(best), ours(study)


def _completed(study: optuna.Study, number: int) -> FrozenTrial:
    trial, name = trial_of(study, number), study.study_name
    if COPIED in trial.user_attrs:
        raise InputError(f"{name}#{number} is a copy; train what it is of: {trial.user_attrs[COPIED]}")
    if trial.state != TrialState.COMPLETE or "stop_reason" not in trial.user_attrs:
        state = trial.state.name.lower() if trial.state != TrialState.COMPLETE else "told by another program"
        raise InputError(f"{name}#{number} is {state}; only a trial that a worker completed can be trained again")
    return trial


def _refuse(out: Path) -> None:
    """A place where no folder can be made. Raises InputError."""
    if os.path.lexists(out):
        raise InputError(f"{out} exists; give another folder, or remove it")
    make_folder(out.absolute().parent)
    if not os.access(out.absolute().parent, os.W_OK):
        raise InputError(f"{out}: cannot be made, as {out.absolute().parent} may not be written to")


def _train(best: BestFile, job: Job, console: Console) -> Finetuned:
    stop = best.early_stopping.stop_epoch
    view = TrainingView(console, job.config.training.epochs if stop is None else stop)

    interrupted: list[int] = []

    def interrupt(number: int, _: object) -> None:
        interrupted.append(number)
        raise KeyboardInterrupt

    def report(progress: Progress) -> Verdict:
        if interrupted:  # where a library swallowed it
            raise KeyboardInterrupt
        view.add(progress)
        return "go on" if stop is None or progress.epoch < stop else "overtaken"

    signal.signal(signal.SIGINT, interrupt)
    with view.shown():
        from objectives.finetune import finetune
        from objectives.progress import Interruptions
        from objectives.trainer import is_out_of_memory

        try:
            trained = finetune(job.config, report, Interruptions(on_start=view.begin), job.memory, cache_folder())
        except Exception as error:
            if is_out_of_memory(error):
                raise HpoError(OUT_OF_MEMORY) from None
            raise
    console.print(_ended(trained.result), soft_wrap=not console.is_terminal)
    return trained


def _ended(result: Result) -> str:
    how = f"{ENDED[result.stop_reason]} at epoch {result.stop_epoch:.2f}, best at {result.best_epoch:.2f}"
    return f"trained for {duration(result.train_s)}: {how}"


def _save(trained: Finetuned, best: BestFile, job: Job, said: str, out: Path) -> None:
    """What has no room is gone again. Raises SetupError."""
    config, scores = job.config, trained.result.scores
    incidents = config.incidents.model_copy(update={"path": config.incidents.path.rpartition("/")[2]})
    facts = ModelFacts(incidents=incidents, threshold=scores["threshold"], head=trained.head is not None)
    card = model_card(best, config, trained.result, load_data(config, cache_folder()), said, out.name)
    try:
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as folder:
            partial = Path(folder) / out.name
            trained.save(partial)
            write_facts(partial, facts)
            write_text(partial / "README.md", card)
            partial.rename(out)
    except Exception as error:  # each library has its own for a disk that is full
        if not isinstance(error, OSError | InputError) and "os error" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise SetupError(f"{out}: the model cannot be written ({reason}); make room, or give another folder") from None


def write_pairs(study: optuna.Study, file: StudyFile, split: str, out: Path) -> int:
    """CSV with anchor, other, grade and label (1 from the positive grade on); returns the number of pairs.

    Training pairs are those of the study file, whatever a search varies of them. Raises InputError, DataError.
    """
    config = trial_config(file)
    fetch_incidents(ours(study), config.incidents)
    data, altered = load_data(config, cache_folder()), list[str]()
    if split == "validation":
        anchors, others, grades = data.validation.anchors, data.validation.others, data.validation.grades
    else:
        if needs_model(config.mining):
            raise InputError("these training pairs are mined by a model; only a trial can tell them")
        mined = train_pairs(data, config, cache_folder())
        (anchors, others), altered = mined.ends[:, :2].T, mined.altered
        incident_of = np.concatenate([np.arange(len(data.table)), mined.sources])
        grades = grade(data.table, data.ladder, incident_of[anchors], others)
    texts = np.array([*data.table.texts, *altered], dtype=object)
    rows = zip(texts[anchors], texts[others], grades, (grades >= data.ladder.positive).astype(int), strict=True)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["anchor", "other", "grade", "label"])
    writer.writerows(rows)
    write_text(out, buffer.getvalue())
    return len(grades)
