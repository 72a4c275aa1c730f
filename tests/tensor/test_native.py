"""Our C++ sources are built once, kept where only this user writes, and not having them is no error."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loramux_server.cpu import native
from loramux_server.cpu import routed as kernel

needs_compiler = pytest.mark.skipif(native.build(kernel.SOURCE) is None, reason="no C++ compiler here")
build = native.build.__wrapped__


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(native, "_state_dir", None)
    native._slower.cache_clear()
    return tmp_path / "home" / "loramux"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    native.keep_in(tmp_path / "state")
    return tmp_path / "state"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.cpp"
    path.write_text('extern "C" int answer() { return 42; }\n')
    return path


@pytest.fixture
def no_code_runs(cache: Path) -> Iterator[None]:
    """The cache folder is on a file system that is mounted noexec."""
    cache.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "noexec,mode=700", "none", str(cache)]
    if os.getuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root; a build that the loader refuses is tested beside this")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(cache)], check=True)


def answer(library: ctypes.CDLL | None) -> int:
    assert library is not None
    return library.answer()


def builds(folder: Path) -> list[Path]:
    return sorted(folder.glob("answer-*.so"))


@needs_compiler
def test_a_build_is_kept_until_its_source_changes(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer(build(source)) == 42
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("built again"))
    assert answer(build(source)) == 42
    assert sorted(cache.iterdir()) == builds(cache)
    source.write_text('extern "C" int answer() { return 43; }\n')
    with pytest.raises(pytest.fail.Exception):
        build(source)


@needs_compiler
def test_a_build_for_another_processor_is_left_alone(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer(build(source)) == 42
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-mtune=generic"))
    assert answer(build(source)) == 42
    assert len(builds(cache)) == 2


@needs_compiler
def test_what_does_not_compile_is_said_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "broken.cpp"
    source.write_text("nonsense")
    assert build(source) is None
    assert "does not compile" in caplog.text


def test_without_a_compiler_torch_does_it_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    assert build(kernel.SOURCE) is None
    assert build(kernel.SOURCE) is None
    (record,) = caplog.records
    assert "no C++ compiler is found" in record.message
    assert "twice as long" in record.message


@needs_compiler
def test_field_12_where_code_must_not_run_the_state_directory_is_taken(
    no_code_runs: None, state: Path, cache: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert answer(build(source)) == 42
    assert len(builds(state / "cache")) == 1
    assert answer(build(source)) == 42
    assert not caplog.records


@needs_compiler
def test_field_12_a_read_only_home_is_passed_over(
    state: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made there, for root neither
    assert answer(build(source)) == 42
    assert len(builds(state / "cache")) == 1


@needs_compiler
def test_without_a_home_the_state_directory_is_taken(
    state: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert answer(build(source)) == 42
    assert len(builds(state / "cache")) == 1


def put(path: Path, data: bytes) -> None:
    """Another file in place of one that this process has loaded: one cut short under its loader ends the process."""
    made = path.with_name("made")
    made.write_bytes(data)
    made.replace(path)


def in_a_process(source: Path) -> Any:
    """A process that exits with the answer of the build, or is ended by the loader."""
    child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(answer(build(source))))
    child.start()
    return child


@needs_compiler
@pytest.mark.parametrize("keep", [0, 100, -1])
def test_field_12_a_damaged_build_is_built_anew(cache: Path, source: Path, keep: int) -> None:
    """In a process of its own: the loader may end the one that loads a file cut short."""
    assert answer(build(source)) == 42
    (path,) = builds(cache)
    put(path, path.read_bytes()[:keep])
    child = in_a_process(source)
    child.join(90)
    assert child.exitcode == 42
    assert builds(cache) == [path]


@needs_compiler
def test_field_12_what_the_loader_refuses_is_said_once(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "_compile", lambda *_: b"\x7fELF" + bytes(200))
    assert build(source) is None
    other = source.with_name("other.cpp")
    other.write_text("")
    assert build(other) is None
    words = [record.message for record in caplog.records]
    assert len(set(words)) == len(words)
    assert all("twice as long" in line and "noexec" in line and "--state-dir" in line for line in words)


@needs_compiler
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_may_write_to_is_never_loaded_from(
    cache: Path, state: Path, source: Path, mode: int
) -> None:
    assert answer(build(source)) == 42
    cache.chmod(mode)
    (path,) = builds(cache)
    put(path, b"never read")
    assert answer(build(source)) == 42
    assert len(builds(state / "cache")) == 1
    assert path.read_bytes() == b"never read"


@needs_compiler
@pytest.mark.skipif(os.getuid() != 0, reason="only root gives folders away")
@pytest.mark.parametrize("what", ["folder", "file"])
def test_another_user_s_build_is_never_loaded(cache: Path, state: Path, source: Path, what: str) -> None:
    assert answer(build(source)) == 42
    (path,) = builds(cache)
    os.chown(cache if what == "folder" else path, 12345, -1)
    assert answer(build(source)) == 42
    assert len(builds(state / "cache")) == 1


@needs_compiler
def test_several_that_build_at_once_all_get_one(cache: Path, source: Path) -> None:
    running = [in_a_process(source) for _ in range(3)]
    for child in running:
        child.join(90)
    assert [child.exitcode for child in running] == [42] * 3
    assert sorted(cache.iterdir()) == builds(cache)
