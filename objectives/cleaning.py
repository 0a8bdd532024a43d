"""Strips what surrounds a ticket's text, and masks what tells who or which machine it is about."""

from __future__ import annotations

import html
import re
import unicodedata
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from ruamel.yaml import YAML

LISTS = Path(__file__).with_name("cleaning_words.yaml")
KINDS = ("email", "phone", "ip", "url", "host", "id", "person")

WORDS = {use: frozenset(words.split()) for use, words in YAML(typ="safe").load(LISTS).items()}
BREAKS = WORDS["tags_that_break_lines"]
INLINE = (
    r"a|abbr|b|base|big|body|center|code|col|colgroup|del|em|figure|font|head|html|i|iframe|img|ins|label|link|"
    r"main|meta|nav|s|script|small|span|strike|strong|style|sub|sup|td|th|tt|u|wbr|xml|[ovw]:\w+"
)
TAG = re.compile(rf"<(?=[a-z/!?])(?:/?({'|'.join(sorted(BREAKS))}|{INLINE})(?:\s[^<>]*)?/?>|[!?][^<>\s][^<>]*>)", re.I)
HIDDEN = re.compile(r"<(?=[sh!])(?:(style|script|head)\b[^<>]*>.*?(?:</\1\s*>|\Z)|!--.*?(?:-->|\Z))", re.I | re.S)
ENTITY = re.compile(r"&(?:(?:amp|#0*38|#x0*26);)*+(#\d{1,7};|#x[\da-f]{1,6};|[a-z][a-z\d]{1,31};)?", re.I)
CONTROL = "[\0-\b\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ud800-\udfff\ufeff]+"
SPACING = [(CONTROL, ""), ("\\r\\n?|[\\v\\f\\x85\\u2028\\u2029]", "\\n"), (r" [^\S\n]+|[^\S\n ][^\S\n]*", " ")]
SPACING += [(r" ?\n ?", "\\n"), (r"\n{3,}", "\\n\\n")]
SPACES = tuple((re.compile(pattern), instead) for pattern, instead in SPACING)
SOME_WORD = re.compile(r"[^\W_]")

SENT = (
    "sent|date|subject|gesendet|datum|betreff|envoyé|objet|inviato|oggetto|enviado(?: el)?|asunto|verzonden|onderwerp"
)
FROM = "from|von|de|da|van"
TO = r"to|b?cc|reply-to|importance|attachments|an|kopie|wichtigkeit|anlagen|à|pièces jointes|a|para|aan"
WROTE = r"(?:on|am|le|el|il|op) (?=[^\n]*\d)(?:[^\n]|\n(?!\n)){5,200}?"
WROTE += r"(?:wrote|schrieb[^\n]{0,80}|a écrit|escribió|ha scritto|schreef[^\n]{0,80}) ?:$"
QUOTED = r"[-_]{2,} ?(?:original|forwarded|ursprüngliche|weitergeleitete|message|mensaje|messaggio)[^\n-]{0,30}-*$"
JOURNAL = r"\d[\d./-]{7,9} \d\d?:\d\d(?::\d\d)?(?: [ap]m)? - [^\n]{1,80}\([^\n()]{3,40}\)$"  # ServiceNow's comments
BLOCK = rf"\*?(?:{FROM})\*? ?:[^\n]*\n(?=(?:[^\n]*\n){{0,3}}\*?(?:{SENT})\*? ?:)"
BLOCK += rf"(?:\*?(?:{FROM}|{TO}|{SENT})\*? ?:[^\n]*\n?)+"
HEADER = rf"^(?:{QUOTED}|{WROTE}|{BLOCK}|{JOURNAL})"
NOTICE = (
    r"(?:confidentiality (?:notice|note)|disclaimer:|(?:this|the information (?:contained )?in this) (?:e-?mail|"
    r"message|communication)[^\n]{0,120}(?:confidential|intended)|if you are not the (?:intended|named) |"
    r"diese e-?mail[^\n]{0,60}vertraulich|ce (?:message|courriel)[^\n]{0,80}confidentiel|"
    r"please consider the environment)[^\n]*(?:\n[^\n]+)*"
)
PHONE_FOOT = (
    r"^(?:sent from my|get outlook for|von meinem|gesendet von|gesendet mit|envoyé de|enviado desde)\b[^\n]{0,50}$"
)
SIGN_OFF = (
    r"(?:(?:with )?(?:best|kind|kindest|warm|many thanks and|thanks (?:and|&)) (?:regards|wishes)|"
    r"(?:yours )?sincerely|yours (?:faithfully|truly)|(?:mit )?(?:freundliche|beste|viele|liebe|herzliche|"
    r"schöne)[mnr]? gr(?:ü|ue|u)(?:ß|ss)e?n?|(?:bien )?cordialement|meilleures salutations|"
    r"(?:un )?saludos?(?: cordial(?:es)?)?|atentamente|(?:cordiali|distinti) saluti|met vriendelijke groet(?:en)?|"
    r"atenciosamente)(?:[ ,.!;-]{1,3}[^\W\d_][\w.'\u2019-]*){0,4}|"
    r"regards(?:[ ,]{1,2}(?-i:[^\Wa-z\d_])[\w.'\u2019-]*){0,3}"
)
SIGN = rf"(?:^(?:--|br|mfg|lg|vg|cheers|best)|(?:^|(?<=[.!?,] ))(?:{SIGN_OFF}))[,.!]?$"
SIGNED, STOP, NOTICES, HEADERS = (
    re.compile(pattern, re.I | re.M)
    for pattern in (
        SIGN,
        rf"^(?:>|ps\b|p\.s\.|\*?(?:{FROM})\*? ?:|{QUOTED}|{WROTE}|{JOURNAL})",
        rf"(?:^|(?<=[.!?] )){NOTICE}|{PHONE_FOOT}",
        HEADER,
    )
)
QUOTES = re.compile("^>.*\n?", re.M)
SIGNATURE_CHARACTERS = 1000  # what goes on for longer after "Best regards" is no signature

OCTET = "(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
IPV4 = rf"(?<![0-9]\.)(?:{OCTET}\.){{3}}{OCTET}(?!\.?[0-9])"
HEX = "[0-9a-fA-F]"
IPV6 = rf"(?<![:.])(?:(?:{HEX}{{1,4}}:){{7}}{HEX}{{1,4}}|(?:{HEX}{{1,4}}(?::{HEX}{{1,4}}){{0,6}}::|::(?={HEX}))"
IPV6 += rf"(?:(?:{HEX}{{1,4}}:){{0,6}}(?:{IPV4}|{HEX}{{1,4}}))?)(?![\w:])"
DATE = r"(?:[0-9]{4}[./-][0-9]{1,2}[./-][0-9]{1,2}|[0-9]{1,2}[./-][0-9]{1,2}[./-](?:[0-9]{4}|[0-9]{2}))(?![./-]?[0-9])"
DIGIT = r"(?>[ \xa0]?\(?\)?[ \xa0]?[./-]?[ \xa0]?[0-9])"  # with what may stand before it in a phone number
ENDED = "(?![0-9])(?:[ ,]{0,2}(?i:x|ext\\.?|extension|dw|durchwahl)[ .:]?[0-9]{1,6}(?![0-9]))?"
PUBLIC = (
    r"(?i:(?:utf|sha|iso|aes|rsa|tls|cve|ora|kb|rtx|gtx|rfc|cp|err|error|http|port|vlan|aadsts|caa|covid|rj|tns|"
    r"ms|wpa|din|en|event|code|usb|office|o|m|win|windows|server|sql|excel|ipv|page|room|build|version|ddr|sap|"
    r"note)[-_]?[0-9])"
)
TLD = (
    r"com|net|org|info|biz|io|cloud|edu|gov|eu|de|fr|uk|us|ch|nl|pl|cz|dk|se|fi|ie|ca|au|in|jp|cn|br|mx|es|pt|ru|"
    r"tr|za|local|localdomain|lan|intern|internal|intra|intranet|corp"
)
MACHINE = (
    r"lt|pc|nb|ws|lap|laptop|desktop|srv|svr|server|vm|dc|db|fs|prn|prt|printer|mac|mbp|sw|ap|wks|dt|clt?|tab|"
    r"kiosk|host|esxi?|app|web|sql|exch|nas"
)
LINK = r"[^\s<>\"]*[^\s<>\".,;:!?)\]}']"
SPECIAL = re.compile(
    rf"""{DATE}|0x{HEX}+|(?P<url>[a-zA-Z][a-zA-Z0-9+.-]{{1,15}}://{LINK}|[wW]{{3}}\.{LINK}|(?<!\\)\\\\[^\s<>"|?*]*[\w$])
|(?P<email>(?<![\w.+%-])(?:mailto:)?[\w.+%-]++@(?=[\w.-]*[^\W\d_]|{IPV4})[\w-]++(?:\.[\w-]++)*)
|(?P<ip>{IPV4}(?:/[0-9]{{1,2}}|:[0-9]{{1,5}})?(?![0-9])|{IPV6}(?:%\w+)?(?:/[0-9]{{1,3}})?)
|(?P<phone>(?:(?<![0-9])\+|00)[1-9]{DIGIT}{{6,14}}{ENDED}|(?<![0-9][.:/-])\(?0[1-9]{DIGIT}{{7,12}}{ENDED}
    |(?<![0-9][.:/-])(?:1[ .-])?(?:\([2-9][0-9]{{2}}\)[ ]?|[2-9][0-9]{{2}}[.-])[0-9]{{3}}
        [ .-][0-9]{{4}}(?![-.]?[0-9]){ENDED})
|(?P<host>(?<![\w.-])(?:(?!(?i:asp|ado|vb)\.net\b)(?:(?>[\w-]+\.)+(?:{TLD}|{TLD.upper()})
        |(?>[\w-]+\.){{2,}}(?:it|at|be|no|me))
        (?![\w-]|\.\w)(?::[0-9]{{1,5}})?(?:/{LINK})?
    |(?!(?i:server|sql|mac|app)-(?:20[0-9]{{2}}|[0-9]{{1,2}})(?!\w))
        (?i:{MACHINE})-(?=[\w-]*[0-9])[A-Za-z0-9][A-Za-z0-9-]*
    |(?:(?i:srv|svr|laptop|desktop|wks|prn|esx|dc|nb|lt)|[A-Z]{{2,8}}(?:SRV|SVR|DC|DB|FS|PRN))[0-9]{{1,4}}(?!\w)
    |(?!{PUBLIC})(?=[A-Z0-9-]*[0-9])(?!(?:CVE|ISO|UTF|COVID)-)[A-Z][A-Z0-9]+
        (?:(?:-[A-Z0-9]+){{2,}}|-[A-Z]{{2,}}[0-9]{{2,}})(?![\w-])))
|(?P<id>{HEX}{{8}}-(?:{HEX}{{4}}-){{3}}{HEX}{{12}}|(?:{HEX}{{2}}[:-]){{5}}{HEX}{{2}}(?![\w:-])
    |S-1-5-[0-9-]+|\[~[^\[\]\s]{{1,64}}\]
    |\#[0-9]{{4,}}|[A-Z]{{2}}[0-9]{{2}}(?:[ ]?[0-9]{{4}}){{3,7}}(?:[ ]?[0-9]{{1,3}})?(?!\w)
    |(?<=\\[uU]sers\\)[\w.-]+|(?<=/home/)[\w.-]+
    |(?!HK)[A-Z][A-Z0-9-]{{1,14}}\\(?=[a-z])[\w.-]{{2,40}}(?![\\\w])
    |(?<![\w-])(?!{PUBLIC})(?:[A-Za-z]{{1,6}}[-_]?[0-9]{{5,}}|[A-Z]{{2,10}}-[0-9]{{3,}}
        |(?<![0-9][.,:])[0-9]{{9,}})(?!\w|[.,][0-9]))""",
    re.X,
)
TOLD = {  # what a word before it says a number is; "count" is a number of anything, "version" and "code" stay
    "phone": rf"(?!(?:19|20)[0-9]{{2}}(?![0-9]))[+(]?[0-9]{DIGIT}{{3,14}}{ENDED}",
    "id": rf"(?!{PUBLIC}|0x)(?=[\w-]{{0,40}}[0-9])\w[\w-]{{3,}}",
    "count": r"[0-9]{4,}(?![\w.,])",
}
TOLD_SHAPE = {cue: re.compile(shape) for cue, shape in TOLD.items()}
CUE = {word: use.removeprefix("cue_") for use, words in WORDS.items() if use.startswith("cue_") for word in words}
BETWEEN, ROLES = WORDS["between"], WORDS["roles"]
ORDINARY = ROLES | WORDS["ordinary"]
PLAIN = {"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa"}
UMLAUTS = str.maketrans(PLAIN | {letter.upper(): plain for letter, plain in PLAIN.items()})
EDGES = ".,;:!?()\"'<>"
SPACED = {code: " " for code in range(128) if not chr(code).isalpha()}
START = re.compile(r"(?<!\w)(?:\w|\+[(0-9]|\([0-9]|\[~|#[0-9]|::|(?<!\\)\\\\)")
TELLABLE = re.compile(r"(?=[\w(+-]{0,40}[0-9])[+(]?\w[\w ()./-]{2}")
TRIGGER = re.compile(r"[0-9@\\.:\[]")
CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # no spaces between words there: each character counts as one
WORD = re.compile(rf"<(?:{'|'.join(KINDS)})>|[{CJK}]|[^\W\d_{CJK}]+[0-9]*")
JOINED = re.compile(r"[ \n,'\u2019_-]{0,3}|\.")
OWN_NUMBER = re.compile(r"(?i:inc|req|ritm|chg|prb|s?c?task|cs)[0-9]|[0-9a-f-]{36}")


def clean(text: str) -> tuple[str, Counter[str]]:
    """The text without markup, mail headers and signatures, unless nothing were left; how many of each went."""
    counts: Counter[str] = Counter()
    before, instead_of_tag = None, ""
    while text != before:
        before = text
        text = _without_html(text, counts, instead_of_tag)
        for pattern, instead in SPACES:
            text = pattern.sub(instead, text)
        text = text.strip()
        for kind, stripped in STEPS:
            shorter, times = stripped(text)
            if times and SOME_WORD.search(shorter):
                text, counts[kind] = shorter, counts[kind] + times
        instead_of_tag = " "  # so that what is left of nested tags makes no new ones
    return text, counts


def _without_html(text: str, counts: Counter[str], inline: str) -> str:
    def tag(found: re.Match[str]) -> str:
        counts["html"] += 1
        name = (found[1] or "").lower()
        return "\n" if name in BREAKS else " " if name in ("td", "th") else inline

    if "&" in text:
        text = ENTITY.sub(lambda found: html.unescape(f"&{found[1] or ''}"), text)
    if "<" in text:
        visible = TAG.sub(tag, HIDDEN.sub(" ", text))
        text = visible if SOME_WORD.search(visible) else TAG.sub(tag, text)
    return unicodedata.normalize("NFC", text)


def _without_signatures(text: str) -> tuple[str, int]:
    """From "Best regards" to the next mail or the end."""
    stops = [stop.start() for stop in STOP.finditer(text)] + [len(text)]
    starts = {stop: stop for stop in stops}  # where what is cut before a stop starts
    for sign in reversed(list(SIGNED.finditer(text))):
        stop = stops[bisect_left(stops, sign.end())]
        if starts[stop] - sign.end() <= SIGNATURE_CHARACTERS:
            starts[stop] = sign.start()
    cuts = [(start, stop) for stop, start in starts.items() if start < stop]
    froms, tos = [0, *(stop for _, stop in cuts)], [*(start for start, _ in cuts), len(text)]
    return "".join(text[start:end] for start, end in zip(froms, tos, strict=True)), len(cuts)


def _without(pattern: re.Pattern[str]) -> Callable[[str], tuple[str, int]]:
    return lambda text: pattern.subn("", text)


STEPS = (
    ("signatures", _without(NOTICES)),
    ("signatures", _without_signatures),
    ("headers", _without(HEADERS)),
    ("headers", _without(QUOTES)),
)


def make_masker(persons: Iterable[str]) -> Callable[[str], tuple[str, Counter[str]]]:
    """What it returns masks a cleaned text and counts the masks; `persons` are the values of the person columns."""
    names: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    for person in set(persons):
        for name in _names(unicodedata.normalize("NFC", person)):
            names[name[0]].add(name)
    by_first = {first: sorted(those, key=len, reverse=True) for first, those in names.items()}

    def mask(text: str) -> tuple[str, Counter[str]]:
        counts: Counter[str] = Counter()
        text, before = unicodedata.normalize("NFC", text), None
        while text != before:
            before = text
            text = _replace(text, _specials(text), counts)
            words = text.lower().translate(SPACED).split() if text.isascii() else map(_key, WORD.findall(text))
            if not by_first.keys().isdisjoint(words):
                text = _replace(text, _people(text, by_first), counts)
        return text, counts

    return mask


def _replace(text: str, spans: Iterable[tuple[int, int, str]], counts: Counter[str]) -> str:
    pieces, at = [], 0
    for start, end, kind in spans:
        pieces += [text[at:start], f"<{kind}>"]
        at = end
        counts[kind] += 1
    return "".join([*pieces, text[at:]])


def _specials(text: str) -> Iterator[tuple[int, int, str]]:
    """What is not a plain word is looked at closely; the others are most of a text."""
    offset = at = floor = 0
    for token in text.split(" "):
        end = offset + len(token)
        if end > at and not token.isalpha() and TRIGGER.search(token.strip(EDGES)):
            at = max(at, offset)
            while start := START.search(text, at, end):
                kind, at = _judge(text, start.start(), floor)
                if kind:
                    floor = at
                    yield start.start(), at, kind
        offset = end + 1


def _judge(text: str, at: int, floor: int) -> tuple[str, int]:
    """The kind of what stands at `at`, if any, and where to look on."""
    found = SPECIAL.match(text, at)
    kind = found.lastgroup or "" if found else None
    if found and kind in ("", "url", "email", "host", "phone"):
        return kind, found.end()
    if not found and not TELLABLE.match(text, at):
        return "", at + 1
    cue = _cue(text[max(floor, at - 48) : at])
    if found:
        stays = cue == "version" if kind == "ip" else cue == "code" and not OWN_NUMBER.match(text, at)
        return "" if stays else kind or "", found.end()
    told = TOLD_SHAPE[cue].match(text, at) if cue in TOLD_SHAPE else None
    return ("id" if cue == "count" else cue, told.end()) if told else ("", at + 1)


def _cue(before: str) -> str:
    """What the words before a number say it is."""
    cue, loosely = "", False
    words = re.split("[,;!?>\n]", before.lower().replace("s/n", "sn"))[-1].translate(SPACED).split()[-4:]
    for word in reversed(words):
        if word not in BETWEEN:
            cue = CUE.get(word, cue)
            break
        cue = cue or CUE.get(word, "")
        loosely |= word in ("at", "on")
    return "" if loosely and cue != "phone" else cue


def _key(word: str) -> str:
    word = word.rstrip("0123456789").lower()
    if word.isascii():
        return word
    return "".join(char for char in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(char))


def _names(person: str) -> Iterator[tuple[str, ...]]:
    """As what a person may be written: keys of words. Ordinary words count only within the full name."""
    joined = re.sub("['\u2019]", "", person)
    for spelling in {person, joined, joined.translate(UMLAUTS), re.sub("(?<=[aou])e", "", person)}:
        last, _, first = re.sub(r"@\S*", "", spelling).partition(",")
        words = [key for key in map(_key, WORD.findall(f"{first} {last}")) if key not in ROLES]
        pieces = [tuple(map(_key, WORD.findall(piece))) for piece in f"{first} {last}".split()]
        for name in [*pieces, *((word,) for word in words)]:
            if len("".join(name)) >= (3 if "".join(name).isascii() else 2) and not ORDINARY.issuperset(name):
                yield name
        if (len(words) > 1 and len("".join(words)) > 3) or any(not word.isascii() for word in words[1:]):
            yield from (tuple(words[i:] + words[:i]) for i in range(len(words)))
            yield from ((words[0], words[-1]), (words[-1], words[0]))
            if len(words[-1]) > 2 and words[-1] not in ORDINARY:  # user ids
                yield from ((words[0][:1] + words[-1],), (words[-1] + words[0][:1],), (words[0] + words[-1],))


def _people(text: str, names: dict[str, list[tuple[str, ...]]]) -> Iterator[tuple[int, int, str]]:
    words = list(WORD.finditer(text))
    keys = [_key(word[0]) for word in words]
    spans: list[tuple[int, int, str]] = []
    at = 0
    while at < len(words):
        near = [name for name in names.get(keys[at], ()) if tuple(keys[at : at + len(name)]) == name]
        length = next((len(name) for name in near if _joined(text, words[at : at + len(name)])), 0)
        if length:
            start, end = words[at].start(), words[at + length - 1].end()
            follows = bool(spans) and text[spans[-1][1] : start] in (" ", "-", "'", "\u2019", ".", "\n")
            spans[-1:] = [(spans[-1][0], end, "person")] if follows else [*spans[-1:], (start, end, "person")]
        at += length or 1
    return iter(spans)


def _joined(text: str, words: list[re.Match[str]]) -> bool:
    return all(JOINED.fullmatch(text, one.end(), other.start()) for one, other in pairwise(words))
