"""From the bytes of a study file to one that is whole: paths absolute, presets written out, the data's hash."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hpo.base_models import absolute_model
from hpo.config import StudyFile, baselines
from hpo.errors import InputError
from hpo.spaces import read_space
from hpo.yamlfile import Place, has_key, read_yaml
from objectives.config import Incidents
from objectives.incidents import file_sha256
from objectives.presets import preset_columns
from objectives.reading import DataError, at_hand


def is_plan(path: Path) -> bool:
    return has_key(path, "phases")


def read_study_file(path: Path) -> StudyFile:
    """Whole and self-contained. Raises InputError, DataError."""
    if is_plan(path):
        raise InputError(f"{path} is a plan of several studies; only `hpo run` takes it")
    file = completed(read_yaml(path, StudyFile), Place(path))
    check_budget(file, Place(path))
    return file


def check_budget(file: StudyFile, place: Place) -> None:
    if len(names := baselines(file)) > file.budget.trials:
        few = f"{file.budget.trials} trials are too few for the baselines alone"
        raise place.below("budget", "trials").error(f"{few} ({', '.join(names)})")


def completed(file: StudyFile, place: Place, own: Place | None = None) -> StudyFile:
    """The places: where it was written, and its space. Raises InputError that names the line, DataError."""
    folder = place.path.parent
    if (model := absolute_model(file.model, folder)) != file.model:
        file = file.model_copy(update={"model": model})
    file = read_space(file, place, (own or place).below("space"))
    change: dict[str, Any] = {
        "incidents": whole_incidents(file.incidents, folder),
        "checkpoints": _absolute_checkpoints(file, folder),
    }
    return file.model_copy(update=change)


def whole_incidents(incidents: Incidents, folder: Path) -> Incidents:
    path = incidents.path if "://" in incidents.path else os.path.realpath(folder / incidents.path)
    file = at_hand(path)
    if incidents.dataset is not None:
        raise DataError("incidents.dataset: the service sets it; remove it")
    change: dict[str, Any] = {"path": path, "sha256": file_sha256(file)}
    if incidents.sha256 not in (None, change["sha256"]):
        raise DataError(f"{path}: SHA-256 is {change['sha256'][:12]}…, the study file says {incidents.sha256}")
    if incidents.preset is not None:
        change |= {"preset": None, "columns": preset_columns(file, incidents.encoding, incidents.preset)}
    return incidents.model_copy(update=change)


def _absolute_checkpoints(file: StudyFile, folder: Path) -> Any:
    checkpoints = file.checkpoints
    if checkpoints.folder is None or "://" in checkpoints.folder:
        return checkpoints
    return checkpoints.model_copy(update={"folder": str((folder / Path(checkpoints.folder).expanduser()).resolve())})
