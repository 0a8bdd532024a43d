"""Reading a ticket export: nothing is guessed, and what cannot be read is named with file and line."""

import gzip
from pathlib import Path

import pytest

from objectives import incidents
from objectives.config import Columns, Incidents
from objectives.exports import Export, read_export
from objectives.incidents import IncidentTable, file_sha256, read_incidents
from objectives.reading import DataError

HEADER = "number,short_description,description,category,subcategory,duplicate_of\n"
ONE = "1,mail down,since noon,software,mail,\n"
TWO = "2,no sound,,hardware,audio,\n"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return tmp_path / "incidents.csv"


def read(path: Path, content: str | bytes, sha256: str | None = None) -> IncidentTable:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_incidents(Incidents(path=str(path), columns=Columns(duplicate_of="duplicate_of"), sha256=sha256))


def refusal(path: Path, content: str | bytes, sha256: str | None = None) -> str:
    with pytest.raises(DataError) as refused:
        read(path, content, sha256)
    assert str(refused.value).startswith(str(path))
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value).removeprefix(str(path))


def test_a_byte_order_mark_is_not_part_of_the_first_column(export: Path) -> None:
    assert read(export, b"\xef\xbb\xbf" + (HEADER + ONE).encode()).ids == ["1"]


def test_gzip_is_read_by_its_suffix(tmp_path: Path) -> None:
    assert read(tmp_path / "incidents.csv.gz", gzip.compress((HEADER + ONE).encode())).texts == ["mail down since noon"]


def test_an_error_after_quoted_line_breaks_names_the_right_line(export: Path) -> None:
    quoted = '1,"mail\ndown","since\r\nnoon",software,mail,\n'
    assert refusal(export, HEADER + quoted + "2,short\n").startswith(":5: found 2 fields, the header has 6")


@pytest.mark.parametrize("row", ["2,a,b,c,d\n", "2,a,b,c,d,,\n"])
def test_too_few_or_too_many_fields_name_the_line(export: Path, row: str) -> None:
    assert refusal(export, HEADER + ONE + row).startswith(":3: found")


def test_a_missing_column_is_named_with_the_columns_there_are(export: Path) -> None:
    message = refusal(export, HEADER.replace("category,", "kind,", 1) + ONE)
    assert message.startswith(":1: no column 'category'; the file has number, short_description, description, kind")


def test_a_repeated_id_names_its_line(export: Path) -> None:
    assert refusal(export, HEADER + ONE + TWO + ONE) == ":4: id '1' is not unique"


def test_two_columns_of_one_name_are_refused(export: Path) -> None:
    assert refusal(export, HEADER.replace("subcategory", "category")).startswith(":1: two columns")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no column"),
        (HEADER, "none of 0 rows"),
        ((HEADER + ONE).encode() + "2,Büro,,x,y,\n".encode("latin-1"), ":3: not UTF-8"),
        (HEADER + '1,"never closed,,x,y,\n', "not readable as CSV"),
        (HEADER + ONE.replace("mail down", "m" * (1 << 21)), "not readable as CSV"),
    ],
    ids=["empty file", "header only", "not UTF-8", "open quote", "huge field"],
)
def test_a_broken_file_is_refused(export: Path, content: str | bytes, complaint: str) -> None:
    assert complaint in refusal(export, content)


@pytest.mark.parametrize("keep", [-20, 5])
def test_a_truncated_gzip_is_refused(tmp_path: Path, keep: int) -> None:
    rows = "".join(ONE.replace("1", str(number)) for number in range(500))
    assert ": cannot be read" in refusal(tmp_path / "incidents.csv.gz", gzip.compress((HEADER + rows).encode())[:keep])


def test_a_file_that_is_not_there_is_named(export: Path) -> None:
    with pytest.raises(DataError, match=f"{export}: cannot be read .No such file"):
        read_incidents(Incidents(path=str(export)))


def test_values_stay_as_written(export: Path) -> None:
    table = read(export, HEADER + "007,None,,NA,null,\n7,nan,,None,NA,\n")
    assert (table.ids, table.texts) == (["007", "7"], ["None", "nan"])
    assert len(set(table.category)) == len(set(table.subcategory)) == 2


def test_other_bytes_than_the_study_was_made_with_are_refused(export: Path) -> None:
    read(export, HEADER + ONE)
    sha256 = file_sha256(export)
    assert len(read(export, HEADER + ONE, sha256)) == 1
    assert "SHA-256" in refusal(export, HEADER + ONE + TWO, sha256)


def test_a_link_to_an_unknown_incident_is_ignored(export: Path) -> None:
    table = read(export, HEADER + "1,a,,x,y,\n2,b,,x,y,1\n3,c,,x,y,99\n")
    assert table.cluster[0] == table.cluster[1] != table.cluster[2]


def test_texts_equal_but_for_unicode_form_case_and_spacing_share_a_group(export: Path) -> None:
    table = read(export, HEADER + "1,Stra\u00dfe  Caf\u00e9,,x,y,\n2,STRASSE,\uff23AFE\u0301,z,y,\n3,other,,x,y,\n")
    assert table.group[0] == table.group[1] != table.group[2]
    assert table.cluster[0] != table.cluster[1]


def test_groups_are_closed_over_links_and_equal_texts(export: Path) -> None:
    table = read(export, HEADER + "1,a,,x,y,\n2,b,,x,y,1\n3,B,,x,y,\n4,c,,x,y,3\n5,d,,x,y,\n")
    assert len(set(table.group[:4])) == 1
    assert table.group[4] != table.group[0]


def test_rows_without_text_or_category_are_dropped_and_counted(export: Path) -> None:
    table = read(export, HEADER + ONE + "2, , ,x,y,\n3,text,, ,y,\n" + TWO.replace("2", "4"))
    assert (table.ids, table.dropped) == (["1", "4"], 2)


def test_equal_names_of_subcategories_differ_between_categories_and_an_empty_one_is_unknown(export: Path) -> None:
    table = read(export, HEADER + "1,a,,x,other,\n2,b,,z,other,\n3,c,,z,,\n")
    assert table.subcategory[0] != table.subcategory[1]
    assert table.subcategory[2] == -1


def test_a_blank_line_is_no_incident(export: Path) -> None:
    export.write_text(HEADER + ONE + "\n\n")
    assert len(read_incidents(Incidents(path=str(export), columns=Columns(duplicate_of="duplicate_of")))) == 1


def test_a_wrong_byte_is_named_with_its_line_far_into_a_file(export: Path) -> None:
    rows = [ONE.replace("1", str(number), 1).encode() for number in range(1, 300)]
    rows[250] = rows[250].replace(b"mail", b"m\xe9l")
    assert ":252: not UTF-8" in refusal(export, HEADER.encode() + b"".join(rows))


DATED = "number,short_description,description,category,subcategory,opened,item\n"


def read_dated(path: Path, form: str | None, *dates: str) -> IncidentTable:
    rows = [f"{number},mail,down,software,mail,{date},\n" for number, date in enumerate(dates)]
    path.write_text(DATED + "".join(rows))
    columns = Columns(opened="opened", opened_format=form, configuration_item="item")
    return read_incidents(Incidents(path=str(path), columns=columns))


def test_dates_are_read_as_declared_or_as_iso_8601_and_a_missing_one_is_older_than_any(export: Path) -> None:
    iso = read_dated(export, None, "2024-03-02 00:00:00", "2024-03-02T01:00:00+01:00", "").opened
    declared = read_dated(export, "%d.%m.%Y %H:%M", "02.03.2024 00:00").opened
    assert iso is not None
    assert declared is not None
    assert iso.tolist() == [1709337600.0, 1709337600.0, float("-inf")]
    assert declared.tolist() == [1709337600.0]


@pytest.mark.parametrize(("form", "expected"), [(None, "an ISO 8601 date; name its form"), ("%d.%m.%Y", "'%d.%m.%Y'")])
def test_a_date_of_another_form_names_its_line(export: Path, form: str | None, expected: str) -> None:
    with pytest.raises(DataError, match=rf"csv:3: found '03/04/24', expected .*{expected}"):
        read_dated(export, form, "2024-03-02" if form is None else "02.03.2024", "03/04/24")


def test_a_form_that_names_a_part_twice_is_refused(export: Path) -> None:
    with pytest.raises(DataError, match=r"expected a date as '%d\.%d'"):
        read_dated(export, "%d.%d", "02.03")


def test_a_field_that_is_no_date_is_not_quoted_when_it_is_a_ticket(export: Path) -> None:
    with pytest.raises(DataError) as refused:
        read_dated(export, None, "my name is Kanarienvogel and I cannot print")
    assert "found '43 characters'" in str(refused.value)


def test_of_columns_that_may_repeat_the_first_that_is_not_empty_counts(export: Path) -> None:
    export.write_text(
        "number,short_description,description,category,subcategory,subcategory\n1,a,b,c,,second\n2,a,b,c,,\n"
    )
    table = read_incidents(Incidents(path=str(export), columns=Columns(may_repeat=True)))
    assert table.subcategory.tolist() == [0, -1]


def test_names_of_categories_are_masked_and_stay_apart(export: Path) -> None:
    table = read(export, HEADER + "1,a,b,ann@corp.example,s,\n2,a,b,bob@corp.example,s,\n")
    assert (table.category.tolist(), table.category_names) == ([0, 1], ["<email>", "<email>"])


def test_a_file_that_changes_while_it_is_read_is_refused(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export.write_text(HEADER + ONE)
    config = Incidents(path=str(export), columns=Columns(duplicate_of="duplicate_of"), sha256=file_sha256(export))

    def read_and_change(config: Incidents) -> Export:
        found = read_export(config)
        export.write_text(HEADER + TWO)
        return found

    monkeypatch.setattr(incidents, "read_export", read_and_change)
    with pytest.raises(DataError, match="the data have changed"):
        read_incidents(config)


def test_an_error_in_what_a_url_leads_to_names_the_url(export: Path) -> None:
    export.write_text(HEADER + ONE + "2,short\n")
    with pytest.raises(DataError, match=f"^file://{export}:3: found 2 fields"):
        read_incidents(Incidents(path=f"file://{export}", columns=Columns(duplicate_of="duplicate_of")))


def test_a_declared_form_goes_before_iso_8601(export: Path) -> None:
    both = read_dated(export, "%Y%d%m", "20240302", "2024-03-02").opened
    assert both is not None
    assert both.tolist() == [1706918400.0, 1709337600.0]  # the third of February, the second of March


def test_equal_configuration_items_of_other_subcategories_are_not_near(export: Path) -> None:
    rows = "1,a,b,software,mail,,srv1\n2,a,b,software,mail,,srv1\n3,a,b,software,web,,srv1\n4,a,b,software,mail,,\n"
    export.write_text(DATED + rows)
    table = read_incidents(Incidents(path=str(export), columns=Columns(configuration_item="item")))
    assert table.configuration_item.tolist() == [0, 0, 1, -1]


PLANTED = "Ann-Marie Osei (ann.osei@corp.example, +49 30 1234567) cannot reach 10.1.2.3 from LT-4711-BER"


def test_persons_and_machines_are_masked_before_anything_else_sees_the_text(export: Path) -> None:
    header = "number,short_description,description,category,subcategory,caller,agent\n"
    rows = [
        f'1,"<p>{PLANTED}</p>","ask OSEI\n\nKind regards\nAnn-Marie",a,b,"Osei, Ann-Marie",\n',
        "2,Osei was here,so was Kowalczyk,a,b,,Jan Kowalczyk\n",
    ]
    export.write_text(header + "".join(rows))
    table = read_incidents(Incidents(path=str(export), columns=Columns(persons=("caller", "agent"))))
    assert table.texts == [
        "<person> (<email>, <phone>) cannot reach <ip> from <host>\nask <person>",
        "<person> was here so was <person>",
    ]
    assert table.changed == {"html": 2, "signatures": 1, "person": 4, "email": 1, "phone": 1, "ip": 1, "host": 1}


def test_nearly_equal_texts_share_a_group(export: Path) -> None:
    one = "the printer on the second floor prints blank pages since the update of this morning"
    rows = [f"1,{one},,x,y,\n", f"2,{one.replace('second', 'third')},,x,z,\n", "3,mail is slow today,,x,y,\n"]
    table = read(export, HEADER + "".join(rows))
    assert table.group[0] == table.group[1] != table.group[2]
    assert table.text_number[0] != table.text_number[1]
