"""Our C++ sources are built once, and not having them is no error."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramux_server.lora import kernel, native

needs_compiler = pytest.mark.skipif(native.build(kernel.SOURCE) is None, reason="no C++ compiler here")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "loramux"


@needs_compiler
def test_a_build_is_kept_until_its_source_changes(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" int answer() { return 42; }\n')
    library = native.build.__wrapped__(source)
    assert library is not None
    assert library.answer() == 42
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("built again"))
    again = native.build.__wrapped__(source)
    assert again is not None
    assert [p.name for p in cache.iterdir()] == [p.name for p in cache.glob("answer-*.so")]
    source.write_text('extern "C" int answer() { return 43; }\n')
    with pytest.raises(pytest.fail.Exception):
        native.build.__wrapped__(source)


@needs_compiler
def test_what_does_not_compile_is_said_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "broken.cpp"
    source.write_text("nonsense")
    assert native.build.__wrapped__(source) is None
    assert "does not compile" in caplog.text


def test_without_a_compiler_torch_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert native.build.__wrapped__(kernel.SOURCE) is None
