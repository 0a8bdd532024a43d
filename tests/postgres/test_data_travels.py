"""Data travel from box to box by the database alone, and what tells people and machines never leaves the export."""

from __future__ import annotations

import csv
import hashlib
import html
import io
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from optuna.trial import TrialState
from sqlalchemy import URL

from objectives.cache import DIGEST_BYTES
from storage.native import PostgresStorage
from tests.canaries import TICKET
from tests.postgres.test_worker import read_until, trainer_of

Process = subprocess.Popen[str]
Query = Callable[..., list[tuple[Any, ...]]]
Start = Callable[..., Process]

UNREAD = "Rohrdommel"  # in a column that no study names
ITEM, GROUP = "Zaunkoenig", "Gartenrotschwanz"  # in the names of all items and groups
PERSONS = ["Jolanta Kowalczyk", "Tostmann, Björn", "Ayşegül Öztürk", "Quillfeather, Wendelin", "Seán O'Rafferty"]
# What tells a person or a machine stands in marks.
TOLD = r"""
write to «hilde.mertesacker@nordwindwerke.test» or to «H.Mertesacker+vpn@mail.nordwindwerke.test», please
my mail «MERTESACKER@NORDWINDWERKE.TEST» bounces (cc: <«vorzimmer@nordwindwerke.test»>)
call «+49 351 8842917» or «0351/8842918», mobile «0171-8842919», or «(555) 884-2920»
Tel.: «+49 (0)351 8842921», fax «0049 351 8842922»
«10.84.213.77» answers, «10.84.213.0/24» does not, nor does «192.168.217.94:8443»
it has «2001:db8:4a7:19::b3f2» and «fe80::9c41:27ff:fe3b:11d8»
since «kolibri07.werk.nordwindwerke.local» moved, «srv-kolibri04» and «LT-KOLIBRI-0417» fail
share «\\kolibri09\projekte$» and https://«kolibri.nordwindwerke.test/anmeldung?u=7» time out
«Jolanta Kowalczyk» cannot print, says «KOWALCZYK, JOLANTA»; «jolanta kowalczyk» could
account «jkowalczyk» is locked, «j.kowalczyk», «kowalczykj» and «jolanta.kowalczyk2» too
«kowalczyk», no: «Jolanta» and «Björn Tostmann» and «bjoern» wait, «TOSTMANN,BJÖRN» as well; ask «bjorn tostmann»
«Tostmann»-laptop; user «btostmann», C:\Users\«btostmann»\Documents
«Ayşegül» has no sound (cc «Öztürk, Ayşegül»), «ozturk» and «aysegul» neither
«aozturk», «ÖZTÜRK» and «oeztuerk» know «wendelin quillfeather» or «Quillfeather, Wendelin»
«Seán O'Rafferty», «sorafferty» or user id «wquillfeather» answers
""".strip().splitlines()
TOLD += ["«sean o\u2019rafferty» answers", "«Bjo\u0308rn» waits, «Ays\u0327egu\u0308l» does not"]
STUDY = """name: travels
incidents:
  path: {path}
  columns: {{duplicate_of: duplicate_of, configuration_item: cmdb_ci, assignment_group: group, persons: [caller]}}
pairs: {{held_out: 1000}}
mining: {{train_pairs: 400, hard_negatives: tfidf}}
training: {{epochs: 2, eval_every_examples: 200}}
space:
  parameters:
    learning_rate: {{type: float, low: 1e-3, high: 0.1, log: true}}
    augmentation: {{type: categorical, choices: [typos, word_dropout]}}
  baselines: {{plain: {{learning_rate: 0.02, augmentation: typos}}}}
budget: {{trials: 3}}
"""
PLACES = ["database", "data sets", "caches", "homes", "outputs", "runs", "best.yaml", "page.html", "pairs.csv"]
TABLES = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('public', 'incident_hpo')"
DATASETS = "SELECT string_agg(content, '' ORDER BY number) FROM incident_hpo.dataset_chunks GROUP BY sha256"
ALONE = ("-c", "import os; del os.environ['HPO_STORAGE']; from hpo.cli import main; main()")


@dataclass(frozen=True)
class Boxes:
    """Each with a home of its own. `said`: what commands said, by their purpose; `saw`: what was there on the way."""

    url: URL
    folder: Path
    launch: Start
    said: dict[str, subprocess.CompletedProcess[str]]
    saw: dict[str, bytes]

    def start(self, box: str, *arguments: str | Path, program: tuple[str, str] = ("-m", "hpo")) -> Process:
        return self.launch(self.url, *program, *arguments, HPO_HOME=str(self.folder / "homes" / box))

    def end(self, purpose: str, process: Process, begun: str = "") -> None:
        output = process.communicate(timeout=120)[0]
        self.said[purpose] = subprocess.CompletedProcess(process.args, process.returncode, begun + output)

    def run(self, purpose: str, box: str, *arguments: str | Path) -> None:
        self.end(purpose, self.start(box, *arguments))

    def cache(self, box: str) -> list[Path]:
        return sorted((self.folder / "homes" / box / "cache").glob("*"))

    def incidents(self, box: str) -> Path:
        found = [path for path in self.cache(box) if path.name.startswith("incidents-")]
        assert len(found) == 1, self.said
        return found[0]


@pytest.fixture(scope="module")
def boxes(module_database: URL, start: Start, tmp_path_factory: pytest.TempPathFactory, incidents_csv: Path) -> Boxes:
    """All at once, as most of the time goes into loading torch."""
    boxes = Boxes(module_database, tmp_path_factory.mktemp("travels"), start, {}, {})
    for path in ("export.csv", "away.csv"):
        (boxes.folder / path).with_suffix(".yaml").write_text(STUDY.format(path=path))
    write_export(boxes.folder / "export.csv", incidents_csv)
    boxes.run("create", "a", "create", boxes.folder / "export.yaml")
    (boxes.folder / "export.csv").rename(boxes.folder / "away.csv")
    boxes.saw["incidents"] = boxes.incidents("a").read_bytes()
    boxes.incidents("a").write_bytes(damaged(boxes.saw["incidents"]))
    travel(boxes)
    return boxes


def write_export(path: Path, incidents_csv: Path) -> None:
    with incidents_csv.open(newline="", encoding="utf-8") as file:
        tickets = list(csv.DictReader(file))
    for number, ticket in enumerate(tickets):
        told = re.sub("[«»]", "", TOLD[number % len(TOLD)])
        ticket["description"] = f"{ticket['description']}, {told}"
        ticket |= {"cmdb_ci": f"{ITEM} {ticket['cmdb_ci']}", "group": f"{GROUP} {ticket['assignment_group']}"}
        ticket |= {"caller": PERSONS[number % len(PERSONS)], "close_notes": UNREAD}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, tickets[0].keys())
        writer.writeheader()
        writer.writerows(tickets)


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def travel(boxes: Boxes) -> None:
    """A worker on B, whose box is cleaned twice; training on C; whoever looks on D and F; no database on E.

    On A, which has the export at another place, the file that was kept is damaged, as it is on F.
    """
    folder, best, other = boxes.folder, boxes.folder / "best.yaml", boxes.folder / "other.yaml"
    worker = boxes.start("b", "worker", "travels")
    check = boxes.start("a", "check-data", folder / "away.yaml", "-o", folder / "page.html", "--json")
    clean_while_loading(boxes, worker)
    pairs = start_with_damaged_file(boxes)
    boxes.run("status", "d", "status", "travels", "--json")
    worker, begun = until_it_trains(boxes, worker)
    clean_while_training(boxes, worker)
    begun += read_until(worker, "trial 0 complete")
    boxes.run("export", "d", "export", "travels", "-o", best)
    started = {"train": boxes.start("c", "train", best, "-o", folder / "model"), "check-data": check, "pairs": pairs}
    (folder / "other.csv").write_text((folder / "away.csv").read_text().replace(TICKET, UNREAD, 1))
    other.write_text(best.read_text().replace("export.csv", "other.csv"))
    started["train other"] = boxes.start("a", "train", other, "-o", folder / "no model")
    started["train alone"] = boxes.start("e", "train", best, "-o", folder / "no model", program=ALONE)
    boxes.end("worker", worker, begun)
    boxes.run("run", "a", "run", folder / "away.yaml", "-o", folder / "runs")
    for purpose, process in started.items():
        boxes.end(purpose, process)


def clean_while_loading(boxes: Boxes, worker: Process) -> None:
    """When the worker has fetched and its trainer has read nothing yet."""
    trainer = trainer_of(worker)
    trainer.suspend()
    boxes.saw["on b"] = boxes.incidents("b").read_bytes()
    (boxes.incidents("b").parent / "pairs-of-another-study").write_bytes(bytes(3 << 20))
    size = sum(path.stat().st_size for path in boxes.cache("b"))
    boxes.run("clean", "b", "clean")
    boxes.saw["to go"] = f"removed {size / 2**20:,.1f} MiB\n".encode()
    boxes.saw["left"] = b"".join(map(bytes, boxes.cache("b")))
    trainer.resume()


def until_it_trains(boxes: Boxes, worker: Process) -> tuple[Process, str]:
    """The worker and what it has said, or the next one, if that could not bear that its box was cleaned."""
    assert worker.stdout
    begun = ""
    for line in worker.stdout:
        begun += line
        if "trial 0 report" in line:
            return worker, begun
    boxes.end("worker that gave up", worker, begun)
    worker = boxes.start("b", "worker", "travels")
    return worker, read_until(worker, "trial 0 report")


def clean_while_training(boxes: Boxes, worker: Process) -> None:
    trainer = trainer_of(worker)
    trainer.suspend()
    boxes.run("clean again", "b", "clean")
    boxes.saw["left again"] = b"".join(map(bytes, boxes.cache("b")))
    trainer.resume()


def start_with_damaged_file(boxes: Boxes) -> Process:
    folder = boxes.incidents("a").parent
    path = Path(shutil.copytree(folder, boxes.folder / "homes" / "f" / "cache")) / boxes.incidents("a").name
    path.write_bytes(damaged(boxes.saw["incidents"]))
    return boxes.start("f", "pairs", "travels", "-o", boxes.folder / "pairs.csv")


@pytest.fixture(scope="module")
def seen(boxes: Boxes, query: Query) -> dict[str, str]:
    """All that can be read in each of PLACES."""
    folder, homes = boxes.folder, sorted((boxes.folder / "homes").rglob("*"))
    rows = [row for (name,) in query(boxes.url, TABLES) for row in query(boxes.url, f"SELECT t::text FROM {name} t")]
    found = {
        "database": [str(row) for (row,) in rows],
        "data sets": [decoded(bytes(content)) for (content,) in query(boxes.url, DATASETS)],
        "caches": [decoded(path.read_bytes()[DIGEST_BYTES:]) for path in homes if is_whole(path)],
        "homes": [f"{path} {'' if path.parent.name == 'cache' else read(path)}" for path in homes],
        "outputs": [ended.stdout for ended in boxes.said.values()],
        "runs": [f"{path} {read(path)}" for path in (folder / "runs").rglob("*")],
    }
    found |= {name: [read(folder / name)] for name in ("best.yaml", "page.html", "pairs.csv")}
    return {place: plain("\n".join(texts)) for place, texts in found.items()}


def is_whole(path: Path) -> bool:
    """Whether it is of a cache, and as it was written."""
    content = path.read_bytes() if path.is_file() and path.parent.name == "cache" else b""
    return hashlib.sha256(content[DIGEST_BYTES:]).digest() == content[:DIGEST_BYTES]


def decoded(content: bytes) -> str:
    """Of the Parquet of incidents, or of NumPy's archive of pairs."""
    if not content.startswith(b"PAR1"):
        with np.load(io.BytesIO(content)) as parts:
            return str(parts["altered"].tobytes().decode())
    table = pq.read_table(pa.BufferReader(content))
    values = [str(value) for column in table.to_pydict().values() for value in column]
    return "\n".join([*values, *(value.decode() for value in table.schema.metadata.values())])


def read(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.is_file() else ""


def plain(text: str) -> str:
    """Without the escapes of JSON and HTML; case and Unicode forms do not count."""
    text = re.sub(r"\\+u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)
    return unicodedata.normalize("NFC", html.unescape(text)).casefold()


def needles() -> list[str]:
    """What was planted, and those pieces of it that would tell as much."""
    secrets = [plain(secret) for secret in [*PERSONS, *re.findall("«(.*?)»", "".join(TOLD))]]
    pieces = [piece for secret in secrets for piece in re.findall(r"[^\W\d_]{6,}|\d{7,}", secret)]
    return sorted({*secrets, *pieces, *map(plain, (ITEM, GROUP, UNREAD))})


def test_every_command_did_as_it_should(boxes: Boxes) -> None:
    codes = {purpose: ended.returncode for purpose, ended in boxes.said.items()}
    expected = dict.fromkeys(boxes.said, 0) | {"train alone": 2, "train other": 2}
    assert codes == expected, [boxes.said[purpose].stdout for purpose in codes if codes[purpose] != expected[purpose]]


def test_worker_on_another_box_finishes_the_study_from_the_database_alone(boxes: Boxes) -> None:
    trials = optuna.load_study(study_name="travels", storage=PostgresStorage(boxes.url)).get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert boxes.saw["on b"] == boxes.saw["incidents"]


def test_what_a_box_keeps_is_its_owners_alone_and_its_name_tells_nothing(boxes: Boxes) -> None:
    folders = sorted((boxes.folder / "homes").glob("*/cache"))
    assert [folder.parent.name for folder in folders] == ["a", "b", "c", "f"]
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}
    files = [path for folder in folders for path in folder.iterdir()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert [path.name for path in files if not re.fullmatch("(incidents|pairs)-[0-9a-f]{64}", path.name)] == []


def test_data_set_that_two_commands_stored_is_in_the_database_once(boxes: Boxes, query: Query) -> None:
    ((content,),) = query(boxes.url, DATASETS)
    digest, size = hashlib.sha256(content).hexdigest(), len(content)
    assert query(boxes.url, "SELECT sha256, bytes FROM incident_hpo.datasets") == [(digest, size)]
    assert boxes.saw["incidents"][DIGEST_BYTES:] == bytes(content)


def test_training_on_a_third_box_gives_the_metrics_of_the_file(boxes: Boxes) -> None:
    said = boxes.said["train"].stdout
    metrics = yaml.safe_load((boxes.folder / "best.yaml").read_text())["metrics"]
    found = {name: float(value) for name, value in re.findall(r"^ +(\w+) +[\d.]+ +([\d.]+) +[+-]", said, re.M)}
    assert found == pytest.approx({name: metric["value"] for name, metric in metrics.items()}, abs=1e-6)
    assert (boxes.folder / "model").is_dir()


def test_training_without_database_and_cache_ends_with_a_sentence(boxes: Boxes) -> None:
    ended = boxes.said["train alone"]
    sentence = f"hpo: {boxes.folder}/export.csv: cannot be read (No such file or directory)\n"
    assert (ended.returncode, ended.stdout) == (2, sentence)
    assert not (boxes.folder / "no model").exists()


def test_training_with_an_export_that_has_changed_is_refused_whatever_was_kept(boxes: Boxes) -> None:
    ended = boxes.said["train other"]
    assert ended.stdout.startswith(f"hpo: {boxes.folder}/other.csv: SHA-256 is ")
    assert (ended.returncode, ended.stdout.count("\n")) == (2, 1)
    assert not (boxes.folder / "no model").exists()


@pytest.mark.parametrize("box", ["a", "f"], ids=["where the export is", "where it is not"])
def test_damaged_file_is_made_or_fetched_anew(boxes: Boxes, box: str) -> None:
    assert boxes.incidents(box).read_bytes() == boxes.saw["incidents"]


def test_cleaning_leaves_nothing_and_says_how_much_went(boxes: Boxes) -> None:
    assert boxes.said["clean"].stdout.encode() == boxes.saw["to go"]
    assert boxes.saw["left"] == boxes.saw["left again"] == b""


def test_worker_whose_box_is_cleaned_while_its_trainer_loads_fetches_anew(boxes: Boxes) -> None:
    assert "worker that gave up" not in boxes.said, boxes.said["worker that gave up"].stdout


def test_worker_whose_box_is_cleaned_between_its_trials_fetches_anew(boxes: Boxes) -> None:
    assert boxes.incidents("b").read_bytes() == boxes.saw["incidents"]


def test_export_has_all_that_is_looked_for(boxes: Boxes) -> None:
    export = plain((boxes.folder / "away.csv").read_text())
    assert [needle for needle in needles() if needle not in export] == []
    assert (export.count(plain(TICKET)), len(needles()) > 60) == (30, True)


@pytest.mark.parametrize("place", PLACES)
def test_nothing_that_tells_a_person_or_a_machine_is_in_any_place(seen: dict[str, str], place: str) -> None:
    assert [needle for needle in needles() if needle in seen[place]] == []


def test_text_of_tickets_is_in_data_sets_and_pairs_alone(seen: dict[str, str]) -> None:
    assert [place for place in PLACES if plain(TICKET) in seen[place]] == ["data sets", "caches", "pairs.csv"]
    assert seen["data sets"].count("<person>") > 100
