"""Altered copies of tickets: other words, typing errors, words left out; masks stay as they are."""

from __future__ import annotations

import json
import pickle
import random
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import nltk
import numpy as np
import pytest
from ruamel.yaml import YAML

from objectives.augmentation import SYNONYMS, Kind, augment
from objectives.reading import DataError

TICKET = """Hello service desk,

the laptop of <person> (<host>) shows an error message: access denied.
Please reset the password, reach us at <email>/<phone> or see <url>; ticket <id>, address <ip>.
Printing from C:\\users\\temp\\report.docx does not work after the update. Thanks"""
MASK = re.compile(r"<\w+>")
GROUPS = [group for topic in YAML(typ="safe", pure=True).load(SYNONYMS).values() for group in topic]
SYNSETS = {word: f"other_{word}" for word in re.findall("[a-z]{4,}", TICKET.lower())} | {"printer": "machine"}
every_kind = pytest.mark.parametrize("kind", get_args(Kind))


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Whom anything asks over the network, which nothing may: not while nlpaug is imported, nor later."""
    asked: list[object] = []

    def refuse(*whom: object, **options: object) -> None:
        asked.append(whom)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield asked
    assert not asked


@pytest.fixture(autouse=True)
def wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A WordNet of a few nouns, and a tagger to which every word is a noun, in the files that nltk reads."""
    files = {f"{kind}.{pos}": "" for kind in ("index", "data") for pos in ("adj", "adv", "verb", "noun")}
    files |= {f"{pos}.exc": "" for pos in ("adj", "adv", "verb", "noun")} | {"lexnames": "00\tnoun.Tops\t1\n"}
    for synset in SYNSETS.items():
        at = f"{len(files['data.noun']):08d}"
        files["data.noun"] += f"{at} 00 n 02 {synset[0]} 0 {synset[1]} 0 000 | a thing\n"
        files["index.noun"] += "".join(f"{lemma} n 1 0 1 0 {at}\n" for lemma in synset)
    tagger = {"weights": {}, "tagdict": {}, "classes": ["NN"]}
    for folder in ("corpora/wordnet", "taggers/averaged_perceptron_tagger_eng"):
        (tmp_path / folder).mkdir(parents=True)
    for name, text in (files | {"index.sense": ""}).items():
        (tmp_path / "corpora/wordnet" / name).write_text(text)
    for name, what in tagger.items():
        path = tmp_path / "taggers/averaged_perceptron_tagger_eng" / f"averaged_perceptron_tagger_eng.{name}.json"
        path.write_text(json.dumps(what))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    yield tmp_path
    if hasattr(nltk.corpus.wordnet, "_unload"):
        nltk.corpus.wordnet._unload()


@every_kind
def test_a_seed_says_what_comes_out_and_leaves_the_generators_of_others_alone(kind: Kind) -> None:
    random.seed(1)
    first = augment([TICKET], kind, 7)
    random.seed(2)
    before = random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    assert augment([TICKET], kind, 7) == first != [TICKET]
    assert (random.getstate(), pickle.dumps(np.random.get_state())) == before  # noqa: NPY002


@every_kind
def test_another_seed_alters_otherwise(kind: Kind) -> None:
    assert len({augment([TICKET], kind, seed)[0] for seed in range(4)}) > 2


@every_kind
def test_a_text_is_altered_alike_among_others(kind: Kind) -> None:
    assert augment(["no sound", TICKET, "laptop"], kind, 7)[1:2] == augment([TICKET], kind, 7)


@every_kind
def test_masks_survive(kind: Kind) -> None:
    for altered in augment([f"{TICKET} {number}" for number in range(50)], kind, 0):
        assert MASK.findall(altered) == MASK.findall(TICKET)


@every_kind
def test_what_says_little_comes_back_as_something(kind: Kind) -> None:
    texts = ["", " ", "\n\n", "<email>", "?", "printer", "Printer down", "<id> broken", " the <host> "]
    texts += [f"no {number}" for number in range(20)]
    altered = augment(texts, kind, 0)
    assert altered[:5] == texts[:5]
    assert all(text.strip() for text in altered[5:])


@pytest.mark.parametrize("kind", ["synonyms", "wordnet", "typos"])
def test_lines_and_what_is_no_word_stay(kind: Kind) -> None:
    for altered in augment([f"{TICKET} {number}" for number in range(50)], kind, 0):
        assert re.findall(r"[\n,;:.()/]", altered) == re.findall(r"[\n,;:.()/]", TICKET)
        assert r"C:\users\temp\report.docx" in altered


def test_every_word_of_the_list_is_replaced_by_another_of_its_group() -> None:
    words = [(word, {other.lower() for other in group}) for group in GROUPS for word in group]
    for (word, group), altered in zip(words, augment([word for word, _ in words], "synonyms", 0), strict=True):
        assert altered.lower() in group - {word.lower()}


def test_a_word_is_in_one_group() -> None:
    words = [word.lower() for group in GROUPS for word in group]
    assert len(GROUPS) >= 120
    assert len(set(words)) == len(words)
    assert min(map(len, GROUPS)) > 1


def test_words_that_are_not_in_the_list_stay_and_capitals_too() -> None:
    altered = augment([f"Laptops smell. Printers purr {number}" for number in range(50)], "synonyms", 0)
    assert {re.sub(r" \d+$", "", text) for text in altered} == {
        "Notebooks smell. Printers purr",
        "Portable computers smell. Printers purr",
        "Laptops smell. Printing devices purr",
    }


def test_one_letter_is_wrong_in_one_word_of_ten() -> None:
    words = ["the", "cat", "shows", "Windows", "crashing"] * 20
    for altered in augment([f"{' '.join(words)} {number}" for number in range(20)], "typos", 0):
        wrong = [(old, new) for old, new in zip(words, altered.split()[:100], strict=True) if old != new]
        assert len(wrong) == 10
        assert all(len(old) > 3 and abs(len(old) - len(new)) < 2 for old, new in wrong)
        assert all(len(set(old.lower()) - set(new.lower())) < 2 for old, new in wrong)


@pytest.mark.parametrize("between", [" ", "\n", "\0"])
def test_one_word_of_ten_goes_and_the_others_stay_in_order(between: str) -> None:
    words = [f"word{number}" for number in range(100)]
    kept = augment([between.join(words)], "word_dropout", 0)[0].split()
    assert 90 <= len(kept) <= 91  # the second word stays where the first goes
    assert kept == sorted(kept, key=words.index)


def test_wordnet_says_the_same_in_other_words() -> None:
    assert augment(["Printer.", "machine", "sofa"], "wordnet", 0) == ["Machine.", "printer", "sofa"]


def test_the_lack_of_wordnet_is_told_and_nothing_fetched(
    wordnet: Path, monkeypatch: pytest.MonkeyPatch, asked: list[object]
) -> None:
    told = "nltk.downloader wordnet averaged_perceptron_tagger_eng$"
    (wordnet / "corpora").rename(wordnet / "elsewhere")
    with pytest.raises(DataError, match=told):
        augment([TICKET], "wordnet", 0)
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(DataError, match=told):
        augment([TICKET], "wordnet", 0)
    assert not asked
