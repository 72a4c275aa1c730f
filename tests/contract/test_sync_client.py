"""The sync client is what its generator makes of the async one."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sync_client", ROOT / "tools" / "sync_client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sync_client_is_in_step(tool: ModuleType) -> None:
    assert tool.drift() == []


def test_a_change_is_seen_and_written(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "PACKAGE", tmp_path)
    (tmp_path / "_async").mkdir()
    (tmp_path / "_sync").mkdir()
    (tmp_path / "_sync" / "old.py").write_text("")
    (tmp_path / "_async" / "chat.py").write_text(
        '"""In an ``async with`` block."""\n\nimport grpc.aio\n\nfrom .._io_async import sleep\n\n\n'
        "class AsyncChat:\n    async def __anext__(self) -> grpc.aio.Call:\n"
        "        await sleep(1)\n        async for item in AsyncChat():\n            return await anext(aiter(item))\n"
        "        raise StopAsyncIteration\n"
    )
    assert tool.drift() == ["chat.py", "old.py"]
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0
    assert [path.name for path in (tmp_path / "_sync").iterdir()] == ["chat.py"]
    header, text = (tmp_path / "_sync" / "chat.py").read_text().split("\n", 1)
    assert "_async/chat.py" in header
    assert text == (
        '"""In a ``with`` block."""\n\nimport grpc\n\nfrom .._io_sync import sleep\n\n\n'
        "class Chat:\n    def __next__(self) -> grpc.Call:\n"
        "        sleep(1)\n        for item in Chat():\n            return next(iter(item))\n"
        "        raise StopIteration\n"
    )


def test_the_sync_client_speaks_of_nothing_async() -> None:
    for path in (ROOT / "client" / "loramux" / "_sync").glob("*.py"):
        code = path.read_text().split("\n", 1)[1].replace("ordinary (not async) code", "")
        assert re.findall(r"\b(?:async|await|asyncio|aio|Async\w+)\b", code) == [], path.name
