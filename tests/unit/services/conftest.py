from __future__ import annotations

import pytest

from loramux_server.core.backend import EngineInfo
from loramux_server.services.common.context import Context
from loramux_server.services.common.limits import Limits
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer

from .fakes import FakeBackend, engine_info
from .tiny_tokenizer import write_tokenizer


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def info(text: TextTokenizer) -> EngineInfo:
    return engine_info(text.vocab_size)


@pytest.fixture
def limits() -> Limits:
    return Limits()


@pytest.fixture
def backend(info: EngineInfo) -> FakeBackend:
    return FakeBackend(info)


@pytest.fixture
def context(store: Store, text: TextTokenizer, info: EngineInfo, limits: Limits, backend: FakeBackend) -> Context:
    return Context(store, text, info, limits, backend)
