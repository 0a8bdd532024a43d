"""Altered copies of training texts: other words of a service desk, typing errors, words left out."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML

from objectives.reading import DataError

Kind = Literal["synonyms", "wordnet", "typos", "word_dropout"]
SYNONYMS = Path(__file__).with_name("synonyms.yaml")
NO_WORDNET = "augmentation wordnet needs nltk and its data on this machine: "
NO_WORDNET += "pip install nltk && python -m nltk.downloader wordnet averaged_perceptron_tagger_eng"
WORD = r"(?<![\w@./\\-])({}[^\W\d_]+)(?![\w>@/\\-]|\.\w)"  # in no mask, path, address or code
WHOLE = re.compile(r"(\S(?:.*\S)?)", re.S)
APART: dict[str, Any] = {"tokenizer": lambda text: text.split("\0"), "reverse_tokenizer": "\0".join}
TYPOS: dict[str, Any] = APART | {"aug_word_p": 0.1, "aug_word_max": None, "aug_char_max": 1, "min_char": 4}
LETTERS = {"include_special_char": False, "include_numeric": False, "include_upper_case": False}


def augment(texts: Sequence[str], kind: Kind, seed: int) -> list[str]:
    """One altered copy per text, which depends on that text, the kind and the seed alone. Raises DataError."""
    rng = random.Random()
    words, augmenters = _augmenters(kind)
    for augmenter in augmenters:
        augmenter.sample = rng.sample  # nlpaug's own draws from the generator that all share

    def altered(text: str) -> str:
        rng.seed(f"{seed} {text}")
        pieces = words.split(text.replace("\0", " "))  # by turns what stays, and a word
        if old := pieces[1::2]:
            new = rng.choice(augmenters).augment("\0".join(old))[0].split("\0")
            pieces[1::2] = map(_with_capital, new, old)
        return "".join(pieces)

    return [altered(text) for text in texts]


def _with_capital(new: str, old: str) -> str:
    return new[:1].upper() + new[1:] if old[:2].istitle() else new


def _augmenters(kind: Kind) -> tuple[re.Pattern[str], list[Any]]:
    """What is a word to them, and nlpaug's augmenters, one of which alters a text."""
    if kind == "wordnet":
        return _words(), [_wordnet()]
    from nlpaug.augmenter import (
        char,  # here, as it loads torch and transformers
        word,
    )

    if kind == "typos":
        slips = [char.RandomCharAug(action, **TYPOS) for action in ("swap", "delete")]
        return _words(), [char.KeyboardAug(**LETTERS, **TYPOS), *slips]
    if kind == "word_dropout":
        apart = {"tokenizer": re.compile(r"\S+\s*").findall, "reverse_tokenizer": lambda kept: "".join(kept).rstrip()}
        return WHOLE, [word.RandomWordAug("delete", aug_p=0.1, aug_max=None, stopwords_regex="(?s).*<", **apart)]
    groups = [group for topic in YAML(typ="safe", pure=True).load(SYNONYMS).values() for group in topic]
    words = _words([phrase for group in groups for phrase in group])
    return words, [word.ReservedAug(groups, case_sensitive=False, aug_p=0.2, aug_max=None, **APART)]


def _words(phrases: Sequence[str] = ()) -> re.Pattern[str]:
    """Single words, and these phrases, each of which counts as one."""
    longest_first = sorted((phrase for phrase in phrases if not phrase.isalpha()), key=len, reverse=True)
    return re.compile(WORD.format("".join(f"{re.escape(phrase)}|" for phrase in longest_first)), re.I)


def _wordnet() -> Any:
    """Where something is missing, nlpaug would download it."""
    try:
        import nltk

        tagger = nltk.tag.PerceptronTagger()
        nltk.corpus.wordnet.ensure_loaded()
    except (ImportError, LookupError):
        raise DataError(NO_WORDNET) from None
    from nlpaug.augmenter.word import SynonymAug

    augmenter = SynonymAug("wordnet", aug_p=0.2, aug_max=None, stopwords_regex=r"\S{1,3}$", **APART)
    augmenter.model.pos_tag = tagger.tag  # nltk.pos_tag reads its file for every text
    return augmenter
