"""Studies: names, directions and attributes, as RDBStorage keeps them. Each call is one statement."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Literal

import psycopg2.errors
from optuna.exceptions import DuplicatedStudyError
from optuna.storages._base import DEFAULT_STUDY_NAME_PREFIX
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy

from storage.connection import Connection, Row

Kind = Literal["user", "system"]
Ask = Callable[..., list[Row]]  # Connection.persist with its patience
Change = tuple[str, Any, Any]  # of an attribute: key, value before and after; None is no attribute
CHANGES = 10_000  # in one message: each call has seconds

INSERT_STUDY = """WITH made AS (INSERT INTO public.studies (study_name) VALUES (%s) RETURNING study_id)
INSERT INTO public.study_directions (study_id, objective, direction)
SELECT study_id, objective - 1, direction::public.studydirection
FROM made, unnest(%s) WITH ORDINALITY AS d (direction, objective) RETURNING study_id"""
# One message is one transaction. Our own tables follow by ON DELETE CASCADE.
DELETE_STUDY = "".join(
    f"DELETE FROM public.{table} WHERE trial_id IN (SELECT trial_id FROM public.trials WHERE study_id = %(study)s);"
    for table in (
        "trial_values",
        "trial_params",
        "trial_intermediate_values",
        "trial_user_attributes",
        "trial_system_attributes",
        "trial_heartbeats",
    )
) + "".join(
    f"DELETE FROM public.{table} WHERE study_id = %(study)s;"
    for table in ("trials", "study_directions", "study_user_attributes", "study_system_attributes", "studies")
)
# No trial is born meanwhile, and none gets a report, which would keep its row from being deleted.
LOCK_STUDY = """SELECT FROM public.studies WHERE study_id = %(study)s FOR UPDATE;
SELECT FROM public.trials WHERE study_id = %(study)s ORDER BY trial_id FOR UPDATE;"""
STUDY_ID = "SELECT study_id FROM public.studies WHERE study_name = %s"
STUDY_NAME = "SELECT study_name FROM public.studies WHERE study_id = %s"
DIRECTIONS = "SELECT direction::text FROM public.study_directions WHERE study_id = %s ORDER BY objective"
STUDY_OF = "SELECT study_id FROM public.trials WHERE trial_id = %s"
TRIAL_ID = "SELECT trial_id FROM public.trials WHERE study_id = %s AND number = %s"
SET_ATTRIBUTE = """INSERT INTO public.study_{kind}_attributes (study_id, key, value_json) VALUES (%s, %s, %s)
ON CONFLICT (study_id, key) DO UPDATE SET value_json = excluded.value_json"""
# One row with NULLs for a study without attributes, none for no study.
ATTRIBUTES = """SELECT a.key, a.value_json FROM public.studies s
LEFT JOIN public.study_{kind}_attributes a ON a.study_id = s.study_id WHERE s.study_id = %s"""
ATTRIBUTE = "SELECT value_json FROM public.study_system_attributes WHERE study_id = %s AND key = %s"
# Sent again it changes nothing, as nothing is then as it was before.
CHANGE_ATTRIBUTES = """WITH wanted AS (
    SELECT e->>0 AS key, e->>1 AS before, e->>2 AS after FROM json_array_elements(%(changes)s::json) e
), removed AS (
    DELETE FROM public.study_system_attributes a USING wanted w
    WHERE a.study_id = %(study)s AND a.key = w.key AND a.value_json = w.before AND w.after IS NULL
), changed AS (
    UPDATE public.study_system_attributes a SET value_json = w.after FROM wanted w
    WHERE a.study_id = %(study)s AND a.key = w.key AND a.value_json = w.before AND w.after IS NOT NULL
)
INSERT INTO public.study_system_attributes (study_id, key, value_json)
SELECT %(study)s, key, after FROM wanted WHERE before IS NULL ON CONFLICT (study_id, key) DO NOTHING"""
ALL_STUDIES = """SELECT s.study_id, s.study_name,
    (SELECT json_agg(direction::text ORDER BY objective) FROM public.study_directions d WHERE d.study_id = s.study_id),
    (SELECT json_agg(json_build_array(key, value_json)) FROM public.study_user_attributes a
     WHERE a.study_id = s.study_id),
    (SELECT json_agg(json_build_array(key, value_json)) FROM public.study_system_attributes a
     WHERE a.study_id = s.study_id)
FROM public.studies s ORDER BY s.study_id"""


def create(connection: Connection, directions: Sequence[StudyDirection], name: str | None) -> int:
    """Not tried twice: whether a name was taken by the first attempt or by somebody else cannot be told."""
    name = DEFAULT_STUDY_NAME_PREFIX + str(uuid.uuid4()) if name is None else name
    try:
        rows = connection.run(INSERT_STUDY, (name, [direction.name for direction in directions]))
    except psycopg2.errors.UniqueViolation:
        raise DuplicatedStudyError(name) from None
    return int(rows[0][0])


def delete(ask: Ask, study_id: int) -> None:
    name_of(ask, study_id)
    ask(LOCK_STUDY + DELETE_STUDY, {"study": study_id})


def id_of(ask: Ask, name: str) -> int:
    return int(_only(ask(STUDY_ID, (name,)), f"study {name!r}"))


def name_of(ask: Ask, study_id: int) -> str:
    return str(_only(ask(STUDY_NAME, (study_id,)), f"study {study_id}"))


def of_trial(ask: Ask, trial_id: int) -> int:
    return int(_only(ask(STUDY_OF, (trial_id,)), f"trial {trial_id}"))


def trial_id(ask: Ask, study_id: int, number: int) -> int:
    return int(_only(ask(TRIAL_ID, (study_id, number)), f"trial {number} in study {study_id}"))


def directions_of(ask: Ask, study_id: int) -> list[StudyDirection]:
    rows = ask(DIRECTIONS, (study_id,))
    _only(rows, f"study {study_id}")
    return [StudyDirection[name] for (name,) in rows]


def set_attribute(ask: Ask, kind: Kind, study_id: int, key: str, value: Any) -> None:
    try:
        ask(SET_ATTRIBUTE.format(kind=kind), (study_id, key, json.dumps(value)))
    except psycopg2.errors.ForeignKeyViolation:
        raise KeyError(f"no study {study_id}") from None


def attributes(ask: Ask, kind: Kind, study_id: int) -> dict[str, Any]:
    rows = ask(ATTRIBUTES.format(kind=kind), (study_id,))
    _only(rows, f"study {study_id}")
    return {key: json.loads(value) for key, value in rows if key is not None}


def attribute(ask: Ask, study_id: int, key: str) -> Any:
    """One system attribute, None if it is not set: all of them may be thousands, as notes of trials are kept there."""
    rows = ask(ATTRIBUTE, (study_id, key))
    return json.loads(rows[0][0]) if rows else None


def change_attributes(ask: Ask, study_id: int, changes: Sequence[Change]) -> None:
    """System attributes, each from one value to another; what somebody else has changed meanwhile stays as it is."""
    for begin in range(0, len(changes), CHANGES):
        part = [(key, _json(before), _json(after)) for key, before, after in changes[begin : begin + CHANGES]]
        ask(CHANGE_ATTRIBUTES, {"study": study_id, "changes": json.dumps(part)})


def all_studies(ask: Ask) -> list[FrozenStudy]:
    return [
        FrozenStudy(
            study_name=name,
            direction=None,
            directions=[StudyDirection[direction] for direction in directions or ()],
            user_attrs={key: json.loads(value) for key, value in user or ()},
            system_attrs={key: json.loads(value) for key, value in system or ()},
            study_id=study_id,
        )
        for study_id, name, directions, user, system in ask(ALL_STUDIES)
    ]


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _only(rows: list[Row], what: str) -> Any:
    if not rows:
        raise KeyError(f"no {what}")
    return rows[0][0]
