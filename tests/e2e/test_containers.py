"""What a container changes: a server, and everything that it starts, in namespaces and control groups of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from tests.tiny import write_model

from .container import STATE, Container, Groups, container, control_groups, impossible

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
MEMORY = 2 << 30
"""Bytes that the container may have."""
CACHE = 600 << 20
"""Bytes of page cache that are in use beside it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if why := impossible():
        pytest.skip(why)
    return write_model(tmp_path_factory.mktemp("model") / "tiny", "llama")


@pytest.fixture(scope="module")
def volume() -> Iterator[Path]:
    """A folder on a disk: files in memory would count as the container's memory."""
    with tempfile.TemporaryDirectory(prefix="loramux-container-", dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups | None]:
    with control_groups(cpus=1.5, memory=MEMORY) as made:
        yield made


@pytest.fixture(scope="module")
def told(volume: Path) -> Iterator[Callable[[], list[str]]]:
    """Gives what a service manager was told, over its socket in the volume; call it once."""
    place, lines = str(volume / "notify"), []

    def read() -> None:
        while line := listening.recv(1000):
            lines.append(line.decode())

    def all_lines() -> list[str]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(b"", place)
        reader.join()
        return lines

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(place)
        reader = Thread(target=read, daemon=True)
        reader.start()
        yield all_lines


@pytest.fixture(scope="module")
def server(model: Path, volume: Path, groups: Groups | None, told: Callable[[], list[str]]) -> Iterator[Container]:
    """As the image starts it where tini is, under everything that is unusual at once."""
    before = ("tini", "--") if shutil.which("tini") else ()
    with container(
        volume, model, before=before, groups=groups, variables={"NOTIFY_SOCKET": f"{STATE}/notify"}
    ) as running:
        yield running


@pytest.fixture(scope="module")
def limited(groups: Groups | None) -> Groups:
    if groups is None:
        pytest.skip("control groups cannot be made here")
    return groups


def test_nothing_is_odd_about_it(server: Container) -> None:
    """No proxy is asked, no home missed, no time zone; and what is written lies in the volume."""
    assert server.run("loramux", "health").stdout == "SERVING\n"
    assert server.run("loramux", "health", "--liveness").stdout == "SERVING\n"
    said = "\n".join(server.server.lines)
    assert "Traceback" not in said
    assert "warning" not in said.lower()
    assert list((server.folder / "cache").glob("*.so")), "compiled functions are kept in the volume"
    assert server.run("touch", "/x", check=False).returncode != 0
    assert server.run("sh", "-c", "cp /bin/true /tmp && /tmp/true", check=False).returncode == 126


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_every_door_is_reached_over_both_families_whatever_the_proxy(server: Container, host: str) -> None:
    assert server.run("loramux", "health", "--address", f"{host}:50051").stdout == "SERVING\n"
    fetch = "import sys, urllib.request as r; o = r.build_opener(r.ProxyHandler({})); print(o.open(sys.argv[1]).read())"
    for path in (":8000/health/ready", ":8000/health/live", ":9464/metrics"):
        server.run("python", "-c", fetch, f"http://{host}{path}")


def test_it_answers_and_holds_answers_to_a_shape(server: Container) -> None:
    said = server.run("loramux", "generate", "hello", "--max-tokens", "4", "--choice", "yes", "--choice", "no").stdout
    assert said.strip() in ("yes", "no")


def test_it_trains_and_publishes(server: Container) -> None:
    rows = [{"prompt": f"{number}", "completion": "x"} for number in range(8)]
    (server.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    server.run("loramux", "train", "acme", "--data", f"{STATE}/rows.jsonl", "--epochs", "1", "--rank", "4")
    assert "acme" in server.run("loramux", "adapters", "ls").stdout
    server.run("loramux", "generate", "1", "--adapter", "acme", "--max-tokens", "2")


def test_threads_follow_the_quota(server: Container, limited: Groups) -> None:
    """The quota is that of the group above: 1.5 processors, so one thread, and none that spins."""
    given = dict(
        line.split("=", 1) for line in Path(f"/proc/{server.engine()}/environ").read_text().split("\0") if "=" in line
    )
    assert (given["OMP_NUM_THREADS"], given["GOMP_SPINCOUNT"]) == ("1", "0")


def free_memory(server: Container) -> int:
    return int(server.json("info")["memory_bytes"]["free"])


def test_memory_is_that_of_the_group_above_and_page_cache_is_free(server: Container, limited: Groups) -> None:
    total = int(server.json("info")["memory_bytes"]["total"])
    assert total == MEMORY
    before = free_memory(server)
    (memory,) = [group for group in limited.inner if "memory" in str(group)]
    target = server.folder / "cached"
    script = f'echo 0 > {memory}/cgroup.procs; dd if=/dev/zero of="$1" bs=1M count={CACHE >> 20} conv=fsync status=none'
    os.spawnlp(os.P_WAIT, "sh", "sh", "-ec", script, "sh", str(target))
    counted = dict(line.split() for line in (memory / "memory.stat").read_text().splitlines())
    assert int(counted["total_cache"]) > CACHE * 0.9
    assert abs(free_memory(server) - before) < CACHE / 3
    target.unlink()


def test_an_engine_that_dies_leaves_no_zombie_and_comes_back(server: Container) -> None:
    if shutil.which("tini") is None:
        pytest.skip("tini, the first process of the image, is not here")
    assert any("grammar.process" in line for _, line in server.processes().values()), "an orphan is made"
    died = server.engine()
    os.kill(died, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while server.run("loramux", "health", check=False).returncode or died in server.processes():
        assert time.monotonic() < deadline
    assert {state for state, _ in server.processes().values()}.isdisjoint("ZX")
    server.run("loramux", "generate", "1", "--adapter", "acme", "--max-tokens", "2")


def test_a_stop_by_the_container_engine(server: Container, told: Callable[[], list[str]]) -> None:
    """Last, because it ends the server: the first process gets the signal, and its exit code is the container's."""
    os.kill(server.first(), signal.SIGTERM)
    assert server.server.finish(60) == 0
    assert "Traceback" not in "\n".join(server.server.lines)
    first, *others, last = told()
    assert first.startswith("STATUS=Starting: ")
    assert last == "STOPPING=1"
    assert "READY=1" in others


def test_first_process_without_ipv6_and_exec_with_the_system_calls_of_the_unit(model: Path) -> None:
    """The server is process 1 itself, its standard input is closed, and no code may be run from what it may write."""
    before = ["python", "-m", "tests.unit.host.no_ipv6"]
    if shutil.which("systemd-analyze") and shutil.which("cc"):
        before += ["python", "-m", "tests.e2e.system_calls"]
    with (
        tempfile.TemporaryDirectory(prefix="loramux-container-", dir="/var/tmp") as folder,
        container(
            Path(folder),
            model,
            before=before,
            mount_options=",noexec",
            stdin="<&-",
            variables={"PYTHONPATH": str(Path(__file__).parents[2])},
        ) as running,
    ):
        assert running.run("cat", "/proc/1/comm").stdout.startswith("python")
        assert running.run("loramux", "health").stdout == "SERVING\n"
        running.run("loramux", "generate", "hello", "--max-tokens", "4", "--choice", "a", "--choice", "b")
        said = "\n".join(running.server.lines)
        assert "compiled functions cannot be loaded" in said
        assert "Traceback" not in said
        os.kill(running.first(), signal.SIGTERM)
        assert running.server.finish(60) == 0
