"""Fixtures that several suites share. Nothing heavy is imported until a test asks for it."""

from __future__ import annotations

import functools
import gc
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from tests.cache import kept_between_runs

# A test that reaches for a hub is a defect and fails at once. Set before anything imports huggingface_hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# On a busy machine threads that spin at a barrier take the processor that the last one needs, and a test of seconds
# takes minutes. Read when OpenMP is loaded, with torch or another library; children inherit it.
for name, value in (("OMP_WAIT_POLICY", "passive"), ("GOMP_SPINCOUNT", "0")):
    os.environ.setdefault(name, value)

# Workers of pytest-xdist share the processors: a team of threads in each would be twice as many as there are.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Imports and the tests' items make next to no garbage, and looking for it takes a fifth of the time of collecting them.
gc.disable()

# Stores wait for their disk at every commit, and most tests have one: in memory, where there is enough, nobody waits.
with suppress(OSError):
    memory = os.statvfs("/dev/shm")
    if memory.f_bavail * memory.f_frsize > 8 << 30 and not memory.f_flag & os.ST_NOEXEC:
        os.environ.setdefault("TMPDIR", "/dev/shm")
        tempfile.tempdir = None  # pytest has looked already

# As the server logs: structlog's own default draws a traceback in colours with all variables, for seconds.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

if TYPE_CHECKING:
    from tests.oracle import Oracle

SHARED = re.compile(r"def \w+\([^)]*\b(server|client|server_with_tools)\b[,:)]")

TinyBase = Callable[..., Path]
MakeAdapter = Callable[..., Path]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file goes to one worker as a whole, and those of tests/e2e that share a server go to the same one."""
    from xdist.scheduler import LoadFileScheduling

    @functools.cache
    def shares_server(file: str) -> bool:
        """Whether its tests ask for the server of tests/e2e/conftest.py. A wrong guess costs the start of another."""
        text = (config.rootpath / file).read_text()
        return bool(SHARED.search(text)) and "def server(" not in text

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "tests/e2e" if file.startswith("tests/e2e/") and shares_server(file) else file

    config.option.loadscopereorder = False  # tests/e2e takes longest and comes first
    return Files(config, log)


def pytest_collection_finish() -> None:
    """Freeze what is imported, as the engine's process does: an engine collects garbage after every job."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    """Remove what lies outside pytest's own folder: a worker of pytest-xdist runs no exit handlers."""
    rows = sys.modules.get("tests.rows")
    if rows is not None:
        shutil.rmtree(rows.FILES, ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip slow tests after TEST_DEADLINE (seconds since the epoch), so that CI still reports the others."""
    deadline = os.environ.get("TEST_DEADLINE")
    if deadline and time.time() > float(deadline) and item.get_closest_marker("slow"):
        pytest.skip("not run: out of time")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    """``tiny_base(arch, **config)``: NF4 folder of a tiny random model (see tests/tiny.py), made once a session."""
    made: dict[str, Path] = {}

    def get(arch: str = "llama", **config: Any) -> Path:
        key = f"{arch}{sorted(config.items())}"
        if key not in made:
            from loramux_server.model.base.quantize import prepare_base
            from tests.tiny import write_model

            root = tmp_path_factory.mktemp(f"tiny-{arch}")
            made[key] = prepare_base(str(write_model(root / arch, arch, **config)), root / "state")
        return made[key]

    return get


@pytest.fixture(scope="session")
def make_adapter() -> MakeAdapter:
    """``make_adapter(folder, base, rank=..., ...)``: a random PEFT adapter (:func:`tests.tiny.write_adapter`)."""
    from tests.tiny import write_adapter

    return write_adapter


@pytest.fixture(scope="session")
def default_base() -> Path:
    """NF4 folder of the real default base, kept between runs."""
    from loramux_server.model.base.quantize import prepare_base

    return prepare_base(None, kept_between_runs())


@pytest.fixture(scope="session")
def oracle_of() -> Callable[[Path], Oracle]:
    """``oracle_of(base)``: the float32 :class:`tests.oracle.Oracle` of an NF4 folder, one a folder and session."""
    made: dict[Path, Oracle] = {}

    def get(base: Path) -> Oracle:
        if base not in made:
            from tests.oracle import Oracle

            made[base] = Oracle(base)
        return made[base]

    return get
