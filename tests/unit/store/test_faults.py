"""The n-th operation on a file or on the database's files fails, for every n: a clear error, and nothing half there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples import few

SOURCE = Path(__file__).with_name("faults.c")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="preloads a library"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler to make the failing file operations"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", made, SOURCE, "-ldl"], check=True)
    return made


@pytest.mark.parametrize("number", few([errno.ENOSPC, errno.EIO]), ids=errno.errorcode.get)
@pytest.mark.parametrize("action", few(["publish", "alias", "delete", "job", "backup", "restore"]))
def test_any_step_may_fail(library: Path, tmp_path: Path, action: str, number: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.store.fault_child", str(tmp_path), action, str(number)],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= {"alias": 3}.get(action, 15)  # the steps were there to fail
