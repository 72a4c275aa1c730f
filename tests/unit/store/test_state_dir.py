"""The state directory keeps a second server out and starts clean."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.store.state_dir import StateDir


def test_layout_and_clean_tmp(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "a" / "b")
    (state.new_tmp("upload") / "half").write_text("x")
    (state.tmp / "file").write_text("x")
    (state.tmp / "link").symlink_to(tmp_path)
    (state.blobs / "kept").write_text("x")
    state.close()
    state.close()
    again = StateDir.open(tmp_path / "a" / "b")
    assert not list(again.tmp.iterdir())
    assert (again.blobs / "kept").exists()
    assert tmp_path.exists()
    again.close()


def test_a_second_server_is_told_who_has_it(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path)
    with pytest.raises(Error) as caught:
        StateDir.open(tmp_path)
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert f"process {os.getpid()}" in caught.value.message
    state.close()
    StateDir.open(tmp_path).close()


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    code = (
        "import os, sys; from loramux_server.store.state_dir import StateDir\n"
        "state = StateDir.open(sys.argv[1]); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    StateDir.open(tmp_path).close()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(Error, match="--state-dir") as caught:
        StateDir.open(tmp_path / "file" / "state")
    assert caught.value.code is Code.FAILED_PRECONDITION


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Error) as caught:
        StateDir.open(tmp_path)
    assert caught.value.reason == "STATE_DIR_UNUSABLE"
