"""The search for canaries, which every test relies on, finds them."""

from __future__ import annotations

from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import URL

from tests import canaries


@pytest.mark.parametrize("word", [canaries.PASSWORD, canaries.TICKET, canaries.TICKET.upper()])
def test_word_in_a_file_that_people_read_is_found(tmp_path_factory: pytest.TempPathFactory, word: str) -> None:
    folder: Path = tmp_path_factory.mktemp("leak") / "deep"
    folder.mkdir()
    (folder / "incidents.csv").write_text(word)  # the export itself
    canaries.refuse_in_files(folder.parent)
    (folder / "worker.log").write_text(f"trial 1: {word}.")
    with pytest.raises(AssertionError, match=r"worker\.log shows"):
        canaries.refuse_in_files(folder.parent)


def test_word_in_a_row_is_found(database: URL) -> None:
    connection = psycopg2.connect(host=database.query["host"], user="postgres", dbname=database.database)
    with connection, connection.cursor() as cursor:
        canaries.refuse_in_tables(cursor)
        cursor.execute("CREATE TABLE public.mine AS SELECT %s AS words", (f"a {canaries.TICKET}",))
        with pytest.raises(AssertionError, match=r"public\.mine shows"):
            canaries.refuse_in_tables(cursor)
        connection.rollback()
    connection.close()
