"""Files of studies in PostgreSQL, as a store of Optuna's artifacts: a dashboard on any box can hand them out."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from optuna.artifacts.exceptions import ArtifactNotFound

from storage.engine import StorageError
from storage.studies import Ask

MAX_MIB = 16  # of one file: twice that on its way, as hexadecimal digits, and each call has seconds
READ = "SELECT content FROM incident_hpo.artifacts WHERE artifact_id = %s"
WRITE = """INSERT INTO incident_hpo.artifacts AS a (artifact_id, study_id, content) VALUES (%s, %s, %s)
ON CONFLICT (artifact_id) DO UPDATE SET content = excluded.content
WHERE a.study_id = excluded.study_id AND a.content <> excluded.content"""
REMOVE = "DELETE FROM incident_hpo.artifacts WHERE artifact_id = %s AND study_id = %s"


@dataclass(frozen=True)
class PostgresArtifacts:
    """Optuna's interface. It reads files of all studies, and writes those of one, if any."""

    ask: Ask
    study_id: int | None = None

    def open_reader(self, artifact_id: str) -> BinaryIO:
        if not (rows := self.ask(READ, (artifact_id,))):
            raise ArtifactNotFound(f"no artifact {artifact_id}")
        return BytesIO(rows[0][0])

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """In place of what was there. Raises StorageError for one that is too large."""
        self._refuse_without_study()
        content = content_body.read((MAX_MIB << 20) + 1)
        if len(content) > MAX_MIB << 20:
            raise StorageError(f"a file is kept with a study up to {MAX_MIB} MiB; this one is larger")
        self.ask(WRITE, (artifact_id, self.study_id, content))

    def remove(self, artifact_id: str) -> None:
        self._refuse_without_study()
        self.ask(REMOVE, (artifact_id, self.study_id))

    def _refuse_without_study(self) -> None:
        if self.study_id is None:
            raise StorageError("files of studies are only read here")
