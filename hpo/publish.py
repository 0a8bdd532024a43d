"""What optuna-dashboard shows of a study beside its trials: the report, plots, best.yaml, and why each trial ended.

It keeps all that in the study's system attributes, which belong to whoever owns the study: no worker writes them. A row
that somebody has changed meanwhile is left alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from io import BytesIO
from itertools import count, takewhile
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hpo.explain import why_ended
from hpo.study import BASELINE, ours
from storage import studies
from storage.artifacts import PostgresArtifacts

BEST = "best.yaml"
NOTES, ARTIFACTS, PLOTS = "dashboard:", "artifacts:", "dashboard:plot_data:hpo-"
INERT = "application/octet-stream"  # saved by every browser, shown by none
OURS = 1_000_000  # a note's version is a multiple of this while it is as we wrote it: whoever edits it adds one
HEAD = "*Report {digest}, written by `hpo`. What stands above this line is kept, what stands below is replaced.*\n\n"
IN_A_NOTE = re.compile(re.escape(HEAD).replace(r"\{digest\}", "([0-9a-f]{12})"))
LINE_PX = 20  # of a plot's title
MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~])")
Attributes = dict[str, Any]  # of a study; None: there shall be none


def publish(study: optuna.Study, note: str, figures: Mapping[str, dict[str, Any]], best_yaml: str | None) -> None:
    """What was published before is replaced; what is there already is not written again.

    A person's own note stays above the report, and instead of ours on a trial. `figures`: of plotly, by their ids.
    Raises StorageError for a best.yaml above 16 MiB.
    """
    there = ours(study).get_study_system_attrs(study._study_id)
    ask, store = ours(study).ask, PostgresArtifacts(ours(study).ask, study._study_id)
    wanted = _note(there, NOTES, _below_what_is_kept(_body(there, NOTES), note))
    wanted |= _plots(there, figures) | _trial_notes(there, study)
    before = _artifacts_named(there, BEST)
    wanted |= {f"{ARTIFACTS}{artifact_id}": None for artifact_id in before}
    if best_yaml is not None:
        artifact_id = before.pop(0) if before else str(uuid.uuid4())
        store.write(artifact_id, BytesIO(best_yaml.encode()))  # first: nothing may name what is not there
        wanted[f"{ARTIFACTS}{artifact_id}"] = json.dumps(_meta(artifact_id, BEST))
    changes = [(key, there.get(key), value) for key, value in wanted.items() if there.get(key) != value]
    studies.change_attributes(ask, study._study_id, changes)
    for artifact_id in before:
        store.remove(artifact_id)


def note_of_trial(there: Attributes, trial_id: int) -> Attributes:
    """Its attributes among the study's, found without a look at all the others."""
    place = f"{NOTES}{trial_id}:"
    keys = [key for key in (f"{place}note_ver", *_rows(there, place)) if key in there]
    return {key: there[key] for key in keys}


def _artifacts_named(there: Attributes, name: str) -> list[str]:
    """Their ids. One that was deleted in the dashboard has left a null."""
    found = [json.loads(value) for key, value in there.items() if key.startswith(ARTIFACTS)]
    return [meta["artifact_id"] for meta in found if meta and meta["filename"] == name]


def _meta(artifact_id: str, name: str) -> dict[str, str | None]:
    """As Optuna writes it."""
    return {"artifact_id": artifact_id, "filename": name, "mimetype": INERT, "encoding": None}


def _plots(there: Attributes, figures: Mapping[str, dict[str, Any]]) -> Attributes:
    """Under names of our own, so that a plot that is no longer wanted goes, and a notebook's stays."""
    if wrong := [name for name in figures if not re.fullmatch(r"[A-Za-z0-9_.-]+", name)]:
        raise ValueError(f"not the id of a plot: {wrong[0]!r}")
    wanted = {f"{PLOTS}{name}:0": json.dumps(_in_a_card(figure), allow_nan=False) for name, figure in figures.items()}
    return {key: None for key in there if key.startswith(PLOTS)} | wanted


def _in_a_card(figure: dict[str, Any]) -> dict[str, Any]:
    """All cards are of one height, and the dashboard's plotly (2.35) makes no room for a title and what is below it."""
    layout = {key: value for key, value in figure.get("layout", {}).items() if key not in ("width", "height")}
    title = layout.get("title", {})
    lines = [text.count("<br>") + 1 for text in (title.get("text"), title.get("subtitle", {}).get("text")) if text]
    if lines:
        layout["title"] = title | {"yref": "container", "y": 1, "yanchor": "top", "pad": {"t": 8}, "automargin": False}
        layout["margin"] = layout.get("margin", {}) | {"t": 20 + LINE_PX * sum(lines)}
    return figure | {"layout": layout}


def _trial_notes(there: Attributes, study: optuna.Study) -> Attributes:
    found = Attributes()
    for trial in study.get_trials(deepcopy=False):
        place = f"{NOTES}{trial._trial_id}:"
        if trial.state.is_finished() and there.get(f"{place}note_ver", 0) % OURS == 0 and (text := _text_of(trial)):
            found |= _note(there, place, text)
    return found


def _text_of(trial: FrozenTrial) -> str:
    """In one line or two; of a trace only the error."""
    sentences = [" ".join(dict.fromkeys((lines[0], lines[-1]))) for lines in map(str.splitlines, why_ended(trial))]
    name = [f"baseline {trial.user_attrs[BASELINE]}"] if BASELINE in trial.user_attrs else []
    lines = [": ".join([*name, *sentences[:1]]), "; ".join(sentences[1:])]
    return "\n\n".join(MARKDOWN.sub(r"\\\1", line) for line in lines if line)


def _below_what_is_kept(body: str, report: str) -> str:
    """The report, below what a person wrote: all that stands above ours, and ours itself where it was changed."""
    kept = body
    for head in IN_A_NOTE.finditer(body):
        if head[1] == _digest(body[head.end() :]):
            kept = body[: head.start()]
    return (f"{kept.rstrip()}\n\n" if kept.strip() else "") + HEAD.format(digest=_digest(report)) + report


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:12]


def _body(there: Attributes, place: str) -> str:
    return "".join(there[key] for key in _rows(there, place))


def _rows(there: Attributes, place: str) -> list[str]:
    """The parts of a note, in order; the dashboard cuts it into many, ours is one."""
    return list(takewhile(there.__contains__, (f"{place}note_str:{number}" for number in count())))


def _note(there: Attributes, place: str, body: str) -> Attributes:
    if _body(there, place) == body:
        return {}
    version = (there.get(f"{place}note_ver", 0) // OURS + 1) * OURS
    return dict.fromkeys(_rows(there, place)) | {f"{place}note_ver": version, f"{place}note_str:0": body}
