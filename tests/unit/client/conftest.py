from __future__ import annotations

from collections.abc import Iterator

import pytest

from loramux import Client

from .fake import Fake, start


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the caller's shell says about servers is none of the tests' business."""
    for name in ("ADDRESS", "API_KEY", "CA_FILE", "CERT_FILE", "KEY_FILE", "SERVER_NAME"):
        monkeypatch.delenv(f"LORAMUX_{name}", raising=False)


@pytest.fixture
def fake() -> Iterator[Fake]:
    fake = Fake()
    server = start(fake)
    yield fake
    server.stop(grace=None).wait()


@pytest.fixture
def client(fake: Fake) -> Iterator[Client]:
    with Client(fake.address, timeout=20) as client:
        yield client
