"""`hpo match` and `hpo similar` as people run them, on the folder of a model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hpo import match as commands
from hpo.cli import main
from hpo.model_folder import ModelFacts, write_facts
from objectives.config import HEAD_FOLDER, Head, Pairs, TrialConfig
from objectives.data import load_data
from objectives.match_head import Practice, fit_head, save_head, unseen_incidents
from objectives.models import encode, load_encoder

Hpo = Callable[..., tuple[int, str, str]]
FIRST, SECOND = "VPN drops every hour", "no connection to vpn"
QUERY = "the printer is out of paper"


@pytest.fixture(scope="module")
def model(config: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained model with a head, as `hpo train` leaves it."""
    folder, data = tmp_path_factory.mktemp("made") / "model", load_data(config)
    encoder = load_encoder(config.model, config.max_seq_tokens, data.table.texts)
    vectors = encode(encoder, np.arange(len(data.table)))
    practice = Practice(vectors, unseen_incidents(data, 0))
    encoder.whole().save(str(folder), create_model_card=False)
    save_head(fit_head(Head(head="logistic"), data, vectors, practice, Pairs(held_out=1000), 0), folder / HEAD_FOLDER)
    write_facts(folder, ModelFacts(incidents=config.incidents, threshold=0.5, head=True))
    return folder


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """A model of one's own, to be spoilt."""
    return Path(shutil.copytree(model, tmp_path / "model"))


@pytest.fixture
def hpo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hpo:
    """hpo(argument, ...): exit status, standard output and error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hpo", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_commands_run_on_their_own_and_take_a_query_from_standard_input(model: Path, incidents_csv: Path) -> None:
    commands = {"match": [model, FIRST, SECOND], "similar": [model, incidents_csv, "--query", "-", "--top", "3"]}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "hpo", name, *map(str, rest)], stdin=-1, stdout=-1, stderr=-1, text=True
        )
        for name, rest in commands.items()
    ]
    outputs = [process.communicate(QUERY, timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    (matched, silent), (listed, silent_too) = outputs
    assert [line.split()[0] for line in matched.splitlines()] == ["similarity", "probability", "match"]
    assert [line.split()[0] for line in listed.splitlines()] == ["1", "2", "3"]
    assert silent == silent_too == ""


def test_match_of_texts_that_differ_in_markup_is_certain(model: Path, hpo: Hpo) -> None:
    code, output, _ = hpo("match", model, f"<p>{FIRST}</p>", FIRST, "--json")
    found = json.loads(output)
    assert code == 0
    assert found["similarity"] == pytest.approx(1)
    assert found["probability"] > found["threshold"]
    assert found["match"] is True


def test_without_a_head_the_similarity_decides(copy: Path, config: TrialConfig, hpo: Hpo) -> None:
    verdicts = {}
    similarity = json.loads(hpo("match", copy, FIRST, SECOND, "--json")[1])["similarity"]
    for threshold in (similarity - 0.01, similarity + 0.01):
        write_facts(copy, ModelFacts(incidents=config.incidents, threshold=threshold))
        verdicts[threshold] = hpo("match", copy, FIRST, SECOND)[1].splitlines()
    (_, above), (_, below) = verdicts.values()
    assert above.split()[:2] == ["match", "yes,"]
    assert below.split()[:2] == ["match", "no,"]


def test_similar_lists_the_nearest_of_all_incidents_in_order(model: Path, config: TrialConfig, hpo: Hpo) -> None:
    table = load_data(config).table
    encoder = load_encoder(config.model, config.max_seq_tokens, [*table.texts, QUERY])
    vectors = encode(encoder, np.arange(len(table) + 1))
    cosines = vectors[:-1] @ vectors[-1]
    rows = json.loads(hpo("similar", model, config.incidents.path, "--query", QUERY, "--top", "7", "--json")[1])
    assert [row["similarity"] for row in rows] == pytest.approx(np.sort(cosines)[::-1][:7], abs=1e-5)
    for row in rows:
        number = table.ids.index(row["id"])
        assert row["similarity"] == pytest.approx(cosines[number], abs=1e-5)
        assert row["text"] == table.texts[number]
        assert row["category"] == table.category_names[table.category[number]]


def test_second_query_encodes_nothing_but_itself_until_the_export_changes(
    model: Path, incidents_csv: Path, tmp_path: Path, hpo: Hpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    export, sizes, really = Path(shutil.copy(incidents_csv, tmp_path / "export.csv")), list[int](), commands._encode
    with export.open("a") as file:
        file.write("INC1,2024-01-01,first,more,Email,Mailbox,,,,\n")

    def counted(model: Any, texts: Sequence[str]) -> NDArray[np.float32]:
        sizes.append(len(texts))
        return really(model, texts)

    monkeypatch.setattr(commands, "_encode", counted)
    for text in ("first", "second"):
        assert hpo("similar", model, export, "--query", text)[0] == 0
    with export.open("a") as file:
        file.write(f"INC2,2024-01-01,{QUERY},,Hardware,Printer,,,,\n")
    assert json.loads(hpo("similar", model, export, "--query", QUERY, "--json")[1])[0]["id"] == "INC2"
    assert sizes == [601, 1, 1, 602, 1]


def test_lines_are_cut_at_80_columns_and_hold_no_escape_code(model: Path, tmp_path: Path, hpo: Hpo) -> None:
    export = tmp_path / "odd.csv"
    rows = [f"INC{number}\x1b[31m,paper {'jam ' * 60},画面が固まる,Hardware,,\n" for number in range(12)]
    export.write_text("number,short_description,description,category,subcategory,x\n" + "".join(rows))
    lines = hpo("similar", model, export, "--query", "paper", "--top", "12")[1].splitlines()
    assert len(lines) == 12
    assert [line for line in lines if len(line) > 80 or "\x1b" in line or not line.endswith("…")] == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["match", "{model}", "  ", SECOND], "a text is empty"),
        (["match", "{none}", FIRST, SECOND], "{none}: no incident_model.yaml in it"),
        (["similar", "{model}", "{incidents}", "--query", "<p></p>"], "a text is empty"),
        (["similar", "{model}", "{none}.csv", "--query", FIRST], "{none}.csv: cannot be read (No such file"),
        (["similar", "{model}", "{model}/modules.json", "--query", FIRST], "{model}/modules.json:"),
    ],
)
def test_wrong_argument_is_one_sentence(
    arguments: list[str], sentence: str, model: Path, incidents_csv: Path, tmp_path: Path, hpo: Hpo
) -> None:
    names = {"model": model, "none": tmp_path / "none", "incidents": incidents_csv}
    code, output, error = hpo(*(argument.format_map(names) for argument in arguments))
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert error.startswith(f"hpo: {sentence.format_map(names)}")


@pytest.mark.parametrize("broken", ["model.safetensors", "modules.json", "tokenizer.json", f"{HEAD_FOLDER}/arrays.npz"])
def test_broken_model_is_one_sentence(broken: str, copy: Path, hpo: Hpo) -> None:
    (copy / broken).write_bytes(b"\x00broken")
    code, output, error = hpo("match", copy, FIRST, SECOND)
    assert (code, output, error.count("\n")) == (78, "", 1)
    assert error.startswith(f"hpo: {copy}")
