"""Optuna's own contract for storages, unchanged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from optuna.testing.pytest_storages import StorageTestCase
from sqlalchemy import URL

from storage.native import PostgresStorage


class TestPostgresStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, database: URL) -> Iterator[PostgresStorage]:
        storage = PostgresStorage(database)
        yield storage
        storage.remove_session()
