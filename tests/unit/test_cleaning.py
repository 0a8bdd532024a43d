"""Tickets lose what surrounds their text, and what tells people and machines. All examples are invented."""

import ipaddress
import re
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.cleaning import KINDS, WORDS, clean, make_masker

PEOPLE = ["Jane Quillfeather", "Tostmann, Björn", "Mark Green", "Seán O'Rafferty", "Dr. Ana-Lucía Núñez", "王小明"]
PEOPLE += ["System Administrator", "Grace Park", "", "Service Desk", "Li Wu", "Anna van der Post"]
mask = make_masker(PEOPLE)

CLEANED = [
    ("<p>Hello</p><p>no <b>sound</b></p>", "Hello\n\nno sound"),
    ("one<br/>two<BR>three", "one\ntwo\nthree"),
    ("<style>p {color: red}</style>screen black<script>var a = 1 < 2;</script>", "screen black"),
    ("<td>mail</td><td>down</td>", "mail down"),
    ("Fish &amp; chips&nbsp;&lt;5 &euro;", "Fish & chips <5 €"),
    ("twice &amp;amp;lt;br&amp;amp;gt; escaped", "twice\nescaped"),
    ("<!-- hidden -->seen", "seen"),
    ("a < b and temp <5 and c > d", "a < b and temp <5 and c > d"),
    ("write to <jdoe>@x or press <enter>", "write to <jdoe>@x or press <enter>"),
    ("AT&T and R&D; a&b", "AT&T and R&D; a&b"),
    ("List<String> of <server>", "List<String> of <server>"),
    ("nul\0 and be\x07ll and zero\u200bwidth", "nul and bell and zerowidth"),
    ("a  b\t c\r\n\r\n\r\n\r\nd ", "a b c\n\nd"),
    ("No mail\n\nBest regards\nJane\nAcme", "No mail"),
    ("No mail. Kind regards, Jane", "No mail."),
    ("Kein Netz\nMit freundlichen Grüßen\nBjörn", "Kein Netz"),
    ("Pas de son\nCordialement,\nAna", "Pas de son"),
    ("No mail\n-- \nJane, Acme", "No mail"),
    ("No mail\nSent from my iPhone", "No mail"),
    ("No mail\n\nThis e-mail is confidential and for you\nalone.", "No mail"),
    ("Regards the printer: it is dead", "Regards the printer: it is dead"),
    ("LG monitor flickers", "LG monitor flickers"),
    ("As regards mail, all is well", "As regards mail, all is well"),
    ("Steps\n- open\n- close", "Steps\n- open\n- close"),
    ("See below\nFrom: Jane\nSent: Monday\nTo: Desk\nSubject: VPN\n\nVPN drops", "See below\n\nVPN drops"),
    ("Siehe unten\nVon: Jane\nGesendet: Montag\nAn: Desk\nBetreff: VPN\n\nVPN weg", "Siehe unten\n\nVPN weg"),
    ("Voir\nDe : Ana\nEnvoyé : lundi\nÀ : Desk\nObjet : VPN\n\nVPN mort", "Voir\n\nVPN mort"),
    ("Again\n-----Original Message-----\nno VPN", "Again\n\nno VPN"),
    ("Again\nOn Mon, 3 Jun 2024 at 10:00, Jane <j@x.example> wrote:\n> no VPN\n> at home", "Again"),
    ("Wieder\nAm 03.06.2024 um 10:00 schrieb Jane:\n> kein VPN", "Wieder"),
    ("Encore\nLe 3 juin 2024 à 10:00, Ana a écrit :\n> pas de VPN", "Encore"),
    ("2024-06-03 10:00:00 - Jane Doe (Work notes)\nreset it", "reset it"),
    ("From: head office\nTo: branch 14", "From: head office\nTo: branch 14"),
    ("Mail\nKind regards\nJane\nFrom: Bo\nSent: Monday\nSubject: x\n\nno VPN\nRegards\nBo", "Mail\n\nno VPN"),
    ("Best regards\nJane", "Best regards\nJane"),
    ("> only quoted", "> only quoted"),
    ("> quoted problem\n\nBest regards\nJane", "> quoted problem"),
    ("On startup the tool wrote:\nfailed", "On startup the tool wrote:\nfailed"),
    ("<script> is shown instead of the page", "is shown instead of the page"),
    ("<p></p>", ""),
]

MASKED = [
    ("write to j.doe+it@mail.acme.example please", "write to <email> please"),
    ("UPN jdoe@acme and mailto:a@b.example.", "UPN <email> and <email>."),
    ("call +49 (0)30 1234-567 or 0049 30 1234567", "call <phone> or <phone>"),
    ("Tel. 030/12345678, mobile 0171-1234567", "Tel. <phone>, mobile <phone>"),
    ("reach me at 555 123 4567 or (555) 123-4567 ext. 12", "reach me at <phone> or <phone>"),
    ("555-123-4567; 1-800-555-1234; 01 23 45 67 89", "<phone>; <phone>; <phone>"),
    ("phone number is 4711", "phone number is <phone>"),
    ("ping 10.1.2.3, 10.0.0.0/8 and 10.1.2.3:8080", "ping <ip>, <ip> and <ip>"),
    ("fe80::1%eth0 and 2001:db8::8a2e:370:7334/64", "<ip> and <ip>"),
    ("open https://acme.example/a?b=1#c, (www.acme.example).", "open <url>, (<url>)."),
    (r"drive \\fs01\dept$\jdoe gone", "drive <url> gone"),
    ("srv01.berlin.acme.local:8443 and mail.acme.com down", "<host> and <host> down"),
    ("LT-4711-BER, SRV-DB01, desktop-8f3k2l1, pc-0123, dc01", "<host>, <host>, <host>, <host>, <host>"),
    ("INC0012345 RITM0001234 ITSD-4711 ticket 12345 #4711", "<id> <id> <id> ticket <id> <id>"),
    ("serial number: 5CG1234XYZ, asset AB-0042", "serial number: <id>, asset <id>"),
    ("550e8400-e29b-41d4-a716-446655440000 00:1A:2B:3C:4D:5E", "<id> <id>"),
    (r"user id jdoe123, ACME\jdoe, C:\Users\jdoe\x, [~jdoe]", r"user id <id>, <id>, C:\Users\<id>\x, <id>"),
    ("Jane Quillfeather and QUILLFEATHER, jane", "<person> and <person>"),
    ("Björn, Bjorn Tostmann's and tostmann björn", "<person>, <person>'s and <person>"),
    ("van der Post, Anna posts; Bjoern answers", "<person> posts; <person> answers"),
    ("MAIL.ACME.COM is down", "<host> is down"),
    ("Mark Green and Green, Mark", "<person> and <person>"),
    ("O'Rafferty; ana-lucia; nunez", "<person>; <person>; <person>"),
    ("用户王小明无法登录 and Wu Li", "用户<person>无法登录 and <person>"),
    ("jquillfeather cannot log in, jane.quillfeather2 neither", "<person> cannot log in, <person> neither"),
]
UNTOUCHED = [
    "version 16.0.1.2 to 16.0.1.3, v10.1.2.3 and build 1.2.3.4",
    "Office 16.0.17328.20162 and 1.2.3.4.5",
    "01.02.2024 10:30, 2024-01-02 and 1/2/24",
    "from 08.15 to 16.30, at 10:30:45",
    "01.02.2024 - 05.02.2024",
    "error 0x80070005, error code 1603, ORA-00942, AADSTS50076, event id 4625",
    "HRESULT -2147024891",
    "error code ABC12345",
    "a phone 2024 model",
    "1.234,56 EUR, $1,234.50 and 12 345 67",
    "KB4012345 and KB0010023, CVE-2024-12345",
    "Windows 10, office365, win11, SHA-256, UTF-8, ISO-8859-1, RTX-3080",
    "asp.net, report.xlsx, setup.exe, e.g. this, done.Then that",
    "java.lang.NullPointerException in com.acme.Main",
    "two of 3 users at 50% and 4096 MB on port 8080",
    "std::string, 12:30, a:b",
    "please mark the page green, it will park",
    "system administrator, service desk, the king, li and wu",
    "Janeway and mygreen",
    "12 users @ home, 5@3",
    "HKLM\\software and C:\\Windows\\System32",
    "the wi-fi, e-mail and VPN-client of room 4711",
    "ext4 and IPv4 and vlan120",
    "call 12 users in 2024",
]


@pytest.mark.parametrize(("text", "expected"), CLEANED)
def test_cleaning_leaves_what_somebody_wrote_about_the_problem(text: str, expected: str) -> None:
    assert clean(text)[0] == expected


def test_cleaning_counts_what_it_took() -> None:
    text = "<p>No mail</p>\n-----Original Message-----\nno <b>VPN</b>\nBest regards\nJane"
    assert clean(text)[1] == Counter(html=4, headers=1, signatures=1)


@pytest.mark.parametrize(("text", "expected"), MASKED)
def test_what_identifies_people_and_machines_is_masked(text: str, expected: str) -> None:
    assert mask(text)[0] == expected


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert mask(text) == (text, Counter())


def test_masks_are_counted_by_kind() -> None:
    text = "jane, a@b.example, 10.1.2.3, 10.1.2.4, https://x.example, LT-4711, INC0012345, +49 30 1234567"
    assert mask(text)[1] == Counter({**dict.fromkeys(KINDS, 1), "ip": 2})


PIECES = [
    "a",
    "é",
    " ",
    "\n",
    "-",
    ".",
    "<",
    ">",
    "&",
    "b",
    "/",
    "amp;",
    "#38;",
    "<b>",
    "<br>",
    "From:",
    "Subject: x\n",
]
PIECES += [
    "Best regards\n",
    "--\n",
    "1",
    "0",
    "2",
    ":",
    "::",
    "@",
    "\\",
    "jane",
    "Quillfeather",
    "Mark",
    "Green",
    "tel",
    "id",
]
PIECES += ["+49", "10.1.2.3", "<person>", "<phone>", "LT-", "#", "version", "\0", ",", "_", "x.com", "<!--", "<style>"]
PIECES += ["ticket", "4711", "王小明", "(", ")", "http://", "[~", "wrote:\n", "On ", "lt;", "gt;", "A", "\u0308", "İ"]
TEXTS = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(PIECES), max_size=25).map("".join))


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once, _ = clean(text)
    assert clean(once) == (once, Counter())


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_masking_twice_is_masking_once(text: str) -> None:
    once, _ = mask(text)
    assert mask(once) == (once, Counter())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["Best regards", "> no VPN", "Jane", "--", "From: a", "Sent: b", "<b>x</b>", ""]), max_size=8
    )
)
def test_a_text_with_words_never_becomes_empty(lines: list[str]) -> None:
    text = "\n".join(lines)
    assert any(char.isalpha() for char in clean(text)[0]) == any(char.isalpha() for char in text)


NAME = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12)
DIGITS = st.text("0123456789", min_size=7, max_size=7)
PLANTS = st.one_of(
    st.tuples(NAME, NAME).map(lambda parts: f"{parts[0]}.x@{parts[1]}.example"),
    DIGITS.map(lambda digits: f"+49 30 {digits}"),
    DIGITS.map(lambda digits: f"0171-{digits}"),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).filter(lambda address: address != ipaddress.ip_address("::")).map(str),
    st.sampled_from(["Jane Quillfeather", "quillfeather", "BJÖRN", "Tostmann, Björn", "Green, Mark", "王小明"]),
)
STAYING = WORDS["cue_version"] | WORDS["cue_code"]  # "v 1.2.3.4" is a version
AROUND = st.one_of(
    st.text(max_size=30).filter(lambda text: STAYING.isdisjoint(re.findall(r"[^\W\d_]+", text.lower()))),
    st.lists(st.sampled_from(["mail", "the", "down", "12", "ok.", "x"])).map(" ".join),
)
EDGE = st.sampled_from([" ", "\n", "(", ")", '"', "'", ",", ";", "!", "?", "|", "=", "*"])


@settings(max_examples=300, deadline=None)
@given(AROUND, EDGE, PLANTS, EDGE, AROUND)
def test_nothing_planted_survives_wherever_it_stands(
    before: str, left: str, plant: str, right: str, after: str
) -> None:
    masked, counts = mask(f"{before}{left}{plant}{right}{after}")
    assert plant not in masked
    assert counts.total()


LONG = [
    "a",
    "<",
    "1.",
    "@",
    "1",
    "a.",
    "a@",
    "\\",
    "&amp;",
    "<style>",
    "[~",
    "+",
    "(",
    "A-",
    "--\n",
    ">\n",
    "From:\n",
    "1-",
]
LONG += [
    "Best regards\n",
    "a:",
    "::",
    "1:",
    "0",
    " ",
    "http://",
    "<!--",
    "x_",
    "tel 1 ",
    "On 1 ",
    "<b",
    "\n",
    "1,",
    "(0",
]


@pytest.mark.parametrize("piece", LONG)
def test_a_hundred_thousand_characters_take_no_more_than_their_share(piece: str) -> None:
    """What backtracks takes ten seconds and more."""
    text = (piece * 100_000)[:100_000]
    for work in (clean, mask):
        start = time.process_time()
        work(text)
        assert time.process_time() - start < 1


def test_tags_within_tags_take_no_more_than_their_share() -> None:
    start = time.process_time()
    clean("<" * 30_000 + "b>" * 35_000)
    assert time.process_time() - start < 1
