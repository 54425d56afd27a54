from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.object_store import ObjectServer, object_server


@pytest.fixture(scope="module")
def one_server() -> Iterator[ObjectServer]:
    with object_server() as server:
        yield server


@pytest.fixture
def store(one_server: ObjectServer) -> ObjectServer:
    """An S3 server with an empty bucket."""
    one_server.clear()
    return one_server
