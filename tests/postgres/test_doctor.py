"""`hpo doctor` says what is fit, what to look at and what is broken, and how to mend it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url

from hpo.doctor import OK, WARNING, _clock, _connections, _gpus, _role, _tls
from storage.engine import without_password
from storage.roles import make_roles
from tests.postgres.conftest import Query, Run, Start


def lines(output: str) -> dict[str, str]:
    """First words by what they are about."""
    found = [line.split(maxsplit=1) for line in output.splitlines() if not line.startswith((" ", "hpo:"))]
    return {rest[:11].strip(): level for level, rest in found}


def test_box_that_is_fit_has_a_good_word_for_each_thing(database: URL, study_yaml: Path, hpo: Run) -> None:
    assert hpo(database, "create", str(study_yaml)).returncode == 0
    done = hpo(without_password(database), "doctor", "small")
    assert done.returncode == 0, done.stdout
    found = lines(done.stdout)
    assert list(found)[:8] == ["database", "tables", "TLS", "role", "clock", "connections", "password", "study"]
    assert set(found) >= {"model", "data set", "disk", "memory", "GPU"}
    assert {level for what, level in found.items() if what not in ("disk", "memory")} == {"ok"}
    assert max(map(len, done.stdout.splitlines())) < 160


def test_database_that_cannot_be_reached_is_broken_and_the_rest_is_looked_at(server_url: URL, hpo: Run) -> None:
    done = hpo(server_url.set(database="nowhere"), "doctor")
    assert (done.returncode, lines(done.stdout)["database"]) == (78, "BROKEN")
    assert "disk" in lines(done.stdout)
    assert done.stdout.splitlines()[-1] == "hpo: not fit for work yet: database"


def test_study_without_its_incidents_is_broken(
    database: URL, study_yaml: Path, incidents_csv: Path, tmp_path: Path, hpo: Run, start: Start, query: Query
) -> None:
    copy = shutil.copy(incidents_csv, tmp_path / "gone.csv")
    study_yaml.write_text(study_yaml.read_text().replace(str(incidents_csv), str(copy)))
    assert hpo(database, "create", str(study_yaml)).returncode == 0
    Path(copy).unlink()
    query(database, "DELETE FROM incident_hpo.dataset_chunks")
    process = start(database, "-m", "hpo", "doctor", "small", HPO_HOME=str(tmp_path / "empty"))
    output = process.communicate(timeout=60)[0]
    assert (process.returncode, lines(output)["data set"], lines(output)["model"]) == (78, "BROKEN", "ok"), output


def test_terminal_that_knows_few_signs_gets_all_lines(database: URL, start: Start) -> None:
    process = start(database, "-m", "hpo", "doctor", PYTHONIOENCODING="ascii")
    output = process.communicate(timeout=60)[0]
    assert (process.returncode, len(lines(output)) > 8) == (0, True), output


def test_home_where_no_server_can_be_is_told_in_a_sentence(start: Start) -> None:
    process = start(make_url("postgresql://"), "-m", "hpo", "status", "demo", HPO_STORAGE="", HPO_HOME="/proc/none")
    output = process.communicate(timeout=60)[0]
    assert (process.returncode, output.count("\n"), "HPO_HOME" in output or "home" in output) == (78, 1, True), output


def test_password_in_the_url_is_to_be_looked_at_and_not_shown(database: URL, hpo: Run) -> None:
    done = hpo(database.set(password="Kanarienpasswort"), "doctor")
    assert (done.returncode, lines(done.stdout)["password"]) == (0, "look")
    assert "Kanarienpasswort" not in done.stdout


def test_worker_role_works_and_the_reader_is_told_who_does(database: URL, hpo: Run) -> None:
    make_roles(database, {})
    assert lines(hpo(database.set(username="hpo_worker"), "doctor").stdout)["role"] == "ok"
    assert lines(hpo(database.set(username="hpo_reader"), "doctor").stdout)["role"] == "look"
    assert _role("hpo_reader", may_write=False, may_claim=False).mend


@pytest.mark.parametrize(
    ("version", "is_local", "mode", "level"),
    [
        (None, True, "prefer", OK),
        (None, False, "prefer", WARNING),
        ("TLSv1.3", False, "require", WARNING),
        ("TLSv1.3", False, "verify-full", OK),
    ],
)
def test_only_an_encrypted_connection_to_a_verified_server_is_well(
    version: str | None, is_local: bool, mode: str, level: str
) -> None:
    found = _tls(version, is_local=is_local, mode=mode)
    assert (found.level, bool(found.mend)) == (level, level == WARNING)


def test_clock_that_is_off_and_few_connections_are_to_be_looked_at() -> None:
    assert [_clock(off_s).level for off_s in (0.5, -0.5, 30.0, -30.0)] == [OK, OK, WARNING, WARNING]
    assert "30 s behind" in _clock(-30.0).words
    assert [_connections(free).level for free in (5, 6)] == [WARNING, OK]


def test_gpu_that_torch_does_not_see_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    (found,) = _gpus()
    assert (found.level, "0 of them seen" in found.words, "driver" in found.mend) == ("BROKEN", True, True)
