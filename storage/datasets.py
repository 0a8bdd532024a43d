"""Data sets by their SHA-256, in chunks. Whatever is asked may be asked again when its answer was lost."""

from __future__ import annotations

import hashlib

from storage.engine import StorageError
from storage.studies import Ask

CHUNK_BYTES = 1 << 20  # twice that on its way, as hexadecimal digits, and each call has seconds

# Whatever a store finds or writes is dated anew: a removal that waited for it reads the date again and leaves it.
FIND_CHUNK = """UPDATE incident_hpo.dataset_chunks SET stored = clock_timestamp()
WHERE sha256 = %s AND number = %s AND sha256(content) = %s RETURNING number"""
WRITE_CHUNK = """INSERT INTO incident_hpo.dataset_chunks (sha256, number, content) VALUES (%s, %s, %s)
ON CONFLICT (sha256, number) DO UPDATE SET content = excluded.content, stored = clock_timestamp()"""
NAME = """WITH whole AS (INSERT INTO incident_hpo.datasets (sha256, bytes) VALUES (%s, %s)
    ON CONFLICT (sha256) DO UPDATE SET bytes = excluded.bytes, stored = clock_timestamp() RETURNING sha256)
UPDATE incident_hpo.studies SET dataset = whole.sha256 FROM whole WHERE study_id = %s RETURNING study_id"""
REMOVE_OLD = """DELETE FROM incident_hpo.datasets d WHERE stored < clock_timestamp() - interval '1 day'
AND NOT EXISTS (SELECT FROM incident_hpo.studies s WHERE s.dataset = d.sha256);
DELETE FROM incident_hpo.dataset_chunks c WHERE stored < clock_timestamp() - interval '1 day'
AND NOT EXISTS (SELECT FROM incident_hpo.datasets d WHERE d.sha256 = c.sha256)"""
READ_BYTES = "SELECT bytes FROM incident_hpo.datasets WHERE sha256 = %s"
READ_CHUNK = "SELECT content FROM incident_hpo.dataset_chunks WHERE sha256 = %s AND number = %s"


def store(ask: Ask, study_id: int, content: bytes) -> str:
    """Sends the chunks that are not there as they should be; from now on the study names the data set. Its SHA-256.

    Removes what no study names any more. Raises KeyError for a study that is not managed.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    for number, begin in enumerate(range(0, len(content), CHUNK_BYTES)):
        chunk = memoryview(content)[begin : begin + CHUNK_BYTES]
        if not ask(FIND_CHUNK, (sha256, number, hashlib.sha256(chunk).digest())):
            ask(WRITE_CHUNK, (sha256, number, chunk))
    if not ask(NAME, (sha256, len(content), study_id)):
        raise KeyError(f"study {study_id} is not managed")
    ask(REMOVE_OLD)
    return sha256


def fetch(ask: Ask, sha256: str) -> bytes | None:
    """None: it is not there, or not yet whole. Raises StorageError for one that is damaged."""
    if not (found := ask(READ_BYTES, (sha256,))):
        return None
    chunks, missing = list[memoryview](), found[0][0]
    while missing > 0 and (rows := ask(READ_CHUNK, (sha256, len(chunks)))):
        chunks.append(rows[0][0])
        missing -= len(chunks[-1])
    content = b"".join(chunks)
    if missing or hashlib.sha256(content).hexdigest() != sha256:
        raise StorageError(
            f"the data set {sha256[:12]}… in PostgreSQL is damaged; run `hpo create` again where its incidents are"
        )
    return content
