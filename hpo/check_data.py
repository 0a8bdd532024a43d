"""`hpo check-data`: what an export holds and allows, before anybody trains on it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from hpo.cells import clean
from hpo.config import StudyFile, trial_config
from hpo.data_page import write_data_page
from hpo.datasets import cache_folder
from hpo.study_file import read_study_file, whole_incidents
from objectives.config import PresetName
from objectives.statistics import FEW, Statistics, statistics

LARGEST = 12  # categories that are shown
LONGEST_NAME = 50


def check_data(path: str, preset: PresetName | None, page: Path | None, *, as_json: bool) -> None:
    """Of a study file, or of an export as a study by default would read it. Raises InputError, DataError."""
    is_study = Path(path).suffix in (".yaml", ".yml")
    file = read_study_file(Path(path)) if is_study else _by_default(path, preset)
    found = statistics(trial_config(file), cache_folder())
    if page is not None:
        write_data_page(page, Path(path).name, found)
    print(json.dumps(asdict(found), allow_nan=False) if as_json else "\n".join(_in_words(found)))


def _by_default(path: str, preset: PresetName | None) -> StudyFile:
    incidents = {"path": path} | ({"preset": preset} if preset else {})
    file = StudyFile.model_validate({"name": "check", "incidents": incidents, "budget": {"trials": 1}})
    return file.model_copy(update={"incidents": whole_incidents(file.incidents, Path())})


def _in_words(found: Statistics) -> list[str]:
    shown = [(_shown(name), count) for name, count in list(found.categories.items())[:LARGEST]]
    width = max(len(name) for name, _ in shown)
    more = len(found.categories) - len(shown)
    return [
        f"{found.incidents:,} incidents of {found.rows:,} rows; {found.rows - found.incidents:,} lack text or category",
        "",
        *(f"  {name:<{width}}  {count:>9,}  {count / found.incidents:6.1%}" for name, count in shown),
        *([f"  and {more} more"] if more > 0 else []),
        "",
        f"{found.subcategories:,} subcategories, {found.small_subcategories:,} with fewer than {FEW} incidents",
        *([f"{found.merged:,} incidents are in small classes, merged or dropped as declared"] if found.merged else []),
        "words per text: " + ", ".join(f"{words} ({percent} %)" for percent, words in found.words.items()),
        f"{found.equal_texts:,} incidents share a text; {found.duplicates:,} are linked as duplicates",
        f"{found.near_duplicates:,} could leak between splits and stay together, up to {found.largest_group:,} of them",
        *_agreement(found),
        "stripped or masked: " + (", ".join(f"{kind} {n:,}" for kind, n in found.changed.items()) or "nothing"),
        "splits: " + ", ".join(f"{name} {count:,}" for name, count in found.splits.items()),
        f"training pairs: {found.train_pairs:,}"
        if found.train_pairs
        else "training pairs: mined by a model, per trial",
        "held-out pairs by grade: " + ", ".join(f"{grade:g}: {n:,}" for grade, n in found.held_out_grades.items()),
        "ceilings below 1: "
        + ", ".join(f"{metric} {value:.3f}" for metric, value in found.ceilings.items() if value < 1),
    ]


def _shown(name: str) -> str:
    """Nothing that a terminal would act on."""
    plain = clean(name)
    return plain if len(plain) <= LONGEST_NAME else f"{plain[: LONGEST_NAME - 1]}…"


def _agreement(found: Statistics) -> list[str]:
    if not found.agreement:
        return []
    agreed = ", ".join(f"{name} {share:.0%}" for name, share in found.agreement.items())
    limits = ", ".join(f"{metric} {value:.2f}" for metric, value in found.noise_ceilings.items())
    noise = [f"if they differ by chance, labels allow no more than about {limits}"] if limits else []
    return [f"{found.repeated:,} pairs of linked duplicates agree in {agreed}", *noise]
