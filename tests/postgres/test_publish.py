"""What is published of a study is what optuna-dashboard reads; it replaces nothing that people wrote."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta, upload_artifact
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna_dashboard import get_note, save_note, save_plotly_graph_object
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects  # type: ignore[import-untyped]
from plotly.graph_objects import Figure
from sqlalchemy import URL

from hpo.config import StudyFile
from hpo.ending import end_if_due
from hpo.pause import pause_reason, resume
from hpo.publish import note_of_trial, publish
from hpo.study import ours
from storage import studies
from storage.artifacts import MAX_MIB, PostgresArtifacts
from storage.engine import StorageError
from tests.recorded import EARLY, FAILED, INFEASIBLE, OVERTAKEN, PRUNED, WHY, make_recorded_study

Query = Callable[..., list[tuple[Any, ...]]]
Published = tuple[optuna.Study, StudyFile]

REPORT = "# Report of servicedesk\n\n| metric | best |\n| --- | ---: |\n| spearman | 0.5888 |\n"
FIGURES: dict[str, dict[str, Any]] = {
    "progress": {"data": [{"y": [0.1, 0.2]}], "layout": {"title": {"text": "größer"}}},
    "by-cost": {"data": [], "layout": {"barmode": "group", "height": 300, "width": 900}},
}
BEST = "schema_version: 1\nmodel: größer\n"
TRIALS = 5000


@pytest.fixture
def recorded(database: URL) -> Published:
    return make_recorded_study(database)


@pytest.fixture
def published(recorded: Published) -> Published:
    publish(recorded[0], REPORT, FIGURES, BEST)
    return recorded


def note_on(study: optuna.Study, number: int) -> str:
    """As the dashboard reads it."""
    note: str = get_note(on(study, number))
    return note


def on(study: optuna.Study, number: int) -> optuna.Trial:
    return optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def attributes(study: optuna.Study) -> dict[str, Any]:
    return study._storage.get_study_system_attrs(study._study_id)


def best_files(study: optuna.Study) -> list[bytes]:
    store = PostgresArtifacts(ours(study).ask)
    metas = get_all_artifact_meta(study, storage=study._storage)
    return [store.open_reader(meta.artifact_id).read() for meta in metas if meta.filename == "best.yaml"]


def rows(query: Query, url: URL) -> list[tuple[Any, ...]]:
    """Every row that may be published, and which transaction wrote it."""
    tables = ("study_system_attributes", "incident_hpo.artifacts")
    return [row for table in tables for row in query(url, f"SELECT xmin::text, t::text FROM {table} t ORDER BY 2")]


# Notes of trials


@pytest.mark.parametrize(
    ("number", "note"),
    [
        (0, "baseline v4: completed at epoch 8.00; the best was at 1.00"),
        (PRUNED, f"pruned, {WHY}\n\npruned at epoch 1.25; the best was at 1.00"),
        (OVERTAKEN, f"overtaken, {WHY}\n\novertaken at epoch 2.50; the best was at 1.50"),
        (EARLY, r"early\_stopping at epoch 0.93; the best was at 0.62"),
        (INFEASIBLE, "cannot work: Diverged the loss is nan"),
        (FAILED, r"failed: RuntimeError: a\_b \* \<c\> \`d\`"),
    ],
    ids=["baseline", "pruned", "overtaken", "early stopping", "infeasible", "failed"],
)
def test_note_of_a_trial_says_why_it_ended(published: Published, number: int, note: str) -> None:
    assert note_on(published[0], number) == note


def test_trial_that_has_not_ended_has_no_note(recorded: Published) -> None:
    study, _ = recorded
    study.enqueue_trial({}, user_attrs={"why_pruned": WHY})
    study.enqueue_trial({}, user_attrs={"baseline": "late"})
    waiting, running = study.get_trials()[-1], study.ask()
    publish(recorded[0], REPORT, FIGURES, BEST)
    assert note_on(study, waiting.number) == note_on(study, running.number) == ""
    study.tell(running, state=TrialState.PRUNED)
    publish(recorded[0], REPORT, FIGURES, BEST)
    assert note_on(study, running.number) == f"pruned, {WHY}"


@pytest.mark.parametrize("text", ["mine", "", "long " * 1000], ids=["new", "erased", "long"])
def test_note_that_a_person_wrote_on_a_trial_stays(published: Published, text: str) -> None:
    study, _ = published
    save_note(on(study, EARLY), text)
    publish(published[0], REPORT, FIGURES, BEST)
    assert note_on(study, EARLY) == text


def test_note_that_a_person_wrote_before_anything_was_published_stays(recorded: Published) -> None:
    study, _ = recorded
    save_note(on(study, EARLY), "mine")
    publish(recorded[0], REPORT, FIGURES, BEST)
    assert note_on(study, EARLY) == "mine"


def test_note_that_a_person_saves_at_the_same_moment_stays(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what is there and the write of what is wanted."""
    study, _ = published
    change_ours(study, EARLY, "as an earlier release put it")
    real = studies.change_attributes

    def late(*arguments: Any) -> None:
        save_note(on(study, EARLY), "mine")
        save_note(study, "mine too")
        real(*arguments)

    monkeypatch.setattr(studies, "change_attributes", late)
    publish(study, f"{REPORT}more", FIGURES, BEST)
    assert (note_on(study, EARLY), get_note(study)) == ("mine", "mine too")


def change_ours(study: optuna.Study, number: int, text: str) -> None:
    place = f"dashboard:{study.get_trials(deepcopy=False)[number]._trial_id}:"
    study._storage.set_study_system_attr(study._study_id, f"{place}note_str:0", text)


def test_note_of_ours_that_says_something_else_now_is_replaced(published: Published) -> None:
    study, _ = published
    change_ours(study, EARLY, "as an earlier release put it")
    publish(published[0], REPORT, FIGURES, BEST)
    assert note_on(study, EARLY) == r"early\_stopping at epoch 0.93; the best was at 0.62"


def test_note_of_a_trial_is_found_without_a_look_at_all_others(published: Published) -> None:
    class Keyed(dict[str, Any]):
        def items(self) -> Any:
            raise AssertionError("looked at all")

        __iter__ = keys = values = items

    study, _ = published
    trial_id, there = study.get_trials(deepcopy=False)[EARLY]._trial_id, attributes(study)
    found = note_of_trial(Keyed(there), trial_id)
    assert found == {key: value for key, value in there.items() if key.startswith(f"dashboard:{trial_id}:")} != {}


# The note of the study


def test_note_of_the_study_is_the_report(published: Published) -> None:
    assert get_note(published[0]).endswith(f"\n\n{REPORT}")


def test_text_above_the_report_is_kept_and_the_report_replaced(published: Published) -> None:
    study, _ = published
    save_note(study, f"## Ours\n\nAsk Operations before using GPU 3.\n\n{get_note(study)}")
    for report in (f"{REPORT}\nsecond", f"{REPORT}\nthird"):
        publish(study, report, FIGURES, BEST)
        note = get_note(study)
        assert note.startswith("## Ours\n\nAsk Operations before using GPU 3.\n\n*Report ")
        assert note.endswith(report)
        assert note.count("# Report of servicedesk") == 1


def test_note_of_the_study_from_before_is_kept_above(recorded: Published) -> None:
    study, _ = recorded
    save_note(study, "mine")
    publish(recorded[0], REPORT, FIGURES, BEST)
    assert get_note(study).startswith("mine\n\n*Report ")
    assert get_note(study).endswith(REPORT)


def test_report_that_a_person_changed_is_kept_above_the_next(published: Published) -> None:
    study, _ = published
    changed = get_note(study).replace("0.5888", "0.5888, which Operations doubts")
    save_note(study, changed)
    for report in (f"{REPORT}\nsecond", f"{REPORT}\nthird"):
        publish(study, report, FIGURES, BEST)
        assert get_note(study).startswith(changed.rstrip())
        assert get_note(study).endswith(report)
        assert get_note(study).count("# Report of servicedesk") == 2


def test_long_note_that_the_dashboard_cut_into_rows_is_kept_whole(published: Published) -> None:
    study, _ = published
    save_note(study, f"{'long ' * 2000}\n\n{get_note(study)}")
    publish(study, f"{REPORT}\nsecond", FIGURES, BEST)
    assert get_note(study).count("long ") == 1999  # a blank at the end of a line is none
    assert get_note(study).endswith(f"{REPORT}\nsecond")
    assert get_note(study).count("# Report of servicedesk") == 1


# Plots


def test_plots_are_what_the_dashboard_draws(published: Published) -> None:
    found = get_plotly_graph_objects(attributes(published[0]))
    drawn = {name: json.loads(figure) for name, figure in found.items()}
    assert drawn.keys() == {f"hpo-{name}" for name in FIGURES}
    for name, figure in FIGURES.items():
        assert drawn[f"hpo-{name}"]["data"] == figure["data"]
    assert drawn["hpo-progress"]["layout"]["title"]["text"] == "größer"
    assert drawn["hpo-by-cost"]["layout"] == {"barmode": "group"}  # the dashboard says how large


def test_plots_that_are_no_longer_wanted_go_and_those_of_a_notebook_stay(published: Published) -> None:
    study, _ = published
    own = Figure(data=[{"y": list(range(2000))}])
    save_plotly_graph_object(study, own, graph_object_id="progress")
    publish(study, REPORT, {"other": FIGURES["progress"]}, BEST)
    found = get_plotly_graph_objects(attributes(study))
    assert found.keys() == {"progress", "hpo-other"}
    assert json.loads(found["progress"]) == json.loads(own.to_json())


@pytest.mark.parametrize("name", ["", "a:0", "a b", "ä", 'a"b'])
def test_plot_whose_id_the_page_cannot_hold_is_refused(recorded: Published, name: str) -> None:
    with pytest.raises(ValueError, match="not the id of a plot"):
        publish(recorded[0], REPORT, {name: {}}, BEST)


def test_plot_with_a_number_that_no_browser_reads_is_refused(recorded: Published) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        publish(recorded[0], REPORT, {"progress": {"data": [{"y": [float("nan")]}]}}, BEST)


# best.yaml


def test_best_file_is_an_artifact_of_the_study_that_no_browser_shows(published: Published) -> None:
    study, _ = published
    (meta,) = get_all_artifact_meta(study, storage=study._storage)
    assert (meta.filename, meta.mimetype, meta.encoding) == ("best.yaml", "application/octet-stream", None)
    assert best_files(study) == [BEST.encode()]


def test_best_file_is_replaced_not_piled_up(published: Published, query: Query, database: URL) -> None:
    study, _ = published
    publish(study, REPORT, FIGURES, "newer")
    assert best_files(study) == [b"newer"]
    assert query(database, "SELECT count(*) FROM incident_hpo.artifacts") == [(1,)]


def test_two_best_files_become_one(published: Published, query: Query, database: URL, tmp_path: Any) -> None:
    study, _ = published
    path = tmp_path / "best.yaml"
    path.write_text("by somebody who published at the same moment")
    store = PostgresArtifacts(ours(study).ask, study._study_id)
    upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=study)
    assert len(best_files(study)) == 2
    publish(study, REPORT, FIGURES, "newer")
    assert best_files(study) == [b"newer"]
    assert query(database, "SELECT count(*) FROM incident_hpo.artifacts") == [(1,)]


def test_best_file_goes_when_there_is_no_best(published: Published, query: Query, database: URL) -> None:
    study, _ = published
    publish(study, REPORT, FIGURES, None)
    assert get_all_artifact_meta(study, storage=study._storage) == []
    assert query(database, "SELECT count(*) FROM incident_hpo.artifacts") == [(0,)]


def test_best_file_that_was_deleted_in_a_dashboard_comes_back(published: Published) -> None:
    study, _ = published
    (meta,) = get_all_artifact_meta(study, storage=study._storage)
    PostgresArtifacts(ours(study).ask, study._study_id).remove(meta.artifact_id)
    study._storage.set_study_system_attr(study._study_id, f"artifacts:{meta.artifact_id}", json.dumps(None))
    publish(published[0], REPORT, FIGURES, BEST)
    metas = [json.loads(value) for key, value in attributes(study).items() if key.startswith("artifacts:")]
    (again,) = [found for found in metas if found]
    assert PostgresArtifacts(ours(study).ask).open_reader(again["artifact_id"]).read() == BEST.encode()


def test_best_file_above_the_limit_is_refused_and_nothing_published(
    recorded: Published, query: Query, database: URL
) -> None:
    before = rows(query, database)
    with pytest.raises(StorageError, match=r"up to 16 MiB; this one is larger"):
        publish(recorded[0], REPORT, FIGURES, "a" * ((MAX_MIB << 20) + 1))
    assert rows(query, database) == before


def test_artifact_of_the_largest_size_comes_back_with_equal_bytes(recorded: Published) -> None:
    store = PostgresArtifacts(ours(recorded[0]).ask, recorded[0]._study_id)
    content = bytes(range(256)) * (MAX_MIB << 12)
    store.write("0-a", io.BytesIO(content))
    assert store.open_reader("0-a").read() == content


def test_artifact_that_is_not_there_is_said_so(recorded: Published) -> None:
    with pytest.raises(ArtifactNotFound):
        PostgresArtifacts(ours(recorded[0]).ask).open_reader("0-a")


def test_artifact_of_one_study_is_neither_overwritten_nor_removed_by_another(
    database: URL, recorded: Published
) -> None:
    other, _ = make_recorded_study(database, "other")
    stores = [PostgresArtifacts(ours(study).ask, study._study_id) for study in (recorded[0], other)]
    for store, content in zip(stores, (b"first", b"second"), strict=True):
        store.write("0-a", io.BytesIO(content))
    stores[1].remove("0-a")
    assert stores[1].open_reader("0-a").read() == b"first"


def test_store_of_no_study_only_reads(published: Published) -> None:
    study, _ = published
    (meta,) = get_all_artifact_meta(study, storage=study._storage)
    store = PostgresArtifacts(ours(study).ask)
    with pytest.raises(StorageError, match="only read"):
        store.write(meta.artifact_id, io.BytesIO(b"mine"))
    with pytest.raises(StorageError, match="only read"):
        store.remove(meta.artifact_id)
    assert best_files(study) == [BEST.encode()]


def test_artifacts_go_with_their_study(published: Published, query: Query, database: URL) -> None:
    optuna.delete_study(study_name="servicedesk", storage=published[0]._storage)
    assert query(database, "SELECT count(*) FROM incident_hpo.artifacts") == [(0,)]


# All of it


def test_publishing_the_same_again_writes_nothing(published: Published, query: Query, database: URL) -> None:
    before = rows(query, database)
    publish(published[0], REPORT, FIGURES, BEST)
    assert rows(query, database) == before


def many_trials(study: optuna.Study, trials: int) -> None:
    template = study.get_trials(deepcopy=False)[PRUNED]
    for _ in range(trials):
        study._storage.create_new_trial(study._study_id, template)


def statements_of(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What its storage sends from now on."""
    sent, connection = list[str](), ours(study)._connection
    real = connection.run

    def run(statement: str, *arguments: Any, **options: Any) -> Any:
        sent.append(statement)
        return real(statement, *arguments, **options)

    monkeypatch.setattr(connection, "run", run)
    return sent


def test_notes_of_thousands_of_trials_are_published_at_once(
    recorded: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, _ = recorded
    many_trials(study, TRIALS)
    sent, started = statements_of(study, monkeypatch), time.monotonic()
    publish(recorded[0], REPORT, FIGURES, BEST)
    assert time.monotonic() - started < 3
    assert len(sent) <= 6
    assert len([key for key in attributes(study) if key.endswith(":note_ver")]) > TRIALS


def test_worker_that_claims_reads_nothing_that_was_published(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a bug that paused the study once, and a plateau to look for."""
    study, file = published
    failed = create_trial(state=TrialState.FAIL, user_attrs={"trace": "a.py:1 f\nKeyError", "worker": "one:1"})
    other: FrozenTrial = create_trial(state=TrialState.FAIL, user_attrs=failed.user_attrs | {"worker": "two:1"})
    study.add_trials([failed, failed, other])
    resume(study)
    file = file.model_copy(update={"budget": file.budget.model_copy(update={"trials": 100, "plateau_trials": 90})})
    ours(study).manage(study._study_id, 100, lease_s=60)
    sent = statements_of(study, monkeypatch)
    end_if_due(ours(study), study, file)
    ours(study).claim(study._study_id, "worker")
    assert pause_reason(study) is None
    assert sent.count(studies.ATTRIBUTE) == 2
    assert studies.ATTRIBUTES.format(kind="system") not in sent
