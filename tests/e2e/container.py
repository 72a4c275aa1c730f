"""A server as a container engine runs it: in namespaces and control groups of its own, made with Debian's tools.

There is no image here. The container is what the kernel makes of it: a process tree, a network, mounts, a user
without a name, a quota and a memory limit. Needs root.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .server_process import ServerProcess, kill

UID = 4242
"""A user that no file of users knows."""
STATE = "/mnt/state"
"""Where the state directory is inside; the folder above it is the only other one that anybody could write to."""
DEAD = "http://192.0.2.1:3128"
"""A proxy that is not there: whoever asks it waits in vain."""
ENVIRONMENT: Mapping[str, str] = {
    "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    "LANG": "C",
    "TZ": "Nowhere/Atall",
    **dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"), DEAD),
    **dict.fromkeys(("all_proxy", "ALL_PROXY"), "socks5://192.0.2.1:1080"),
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "LORAMUX_ADDRESS": "127.0.0.1:50051",
    "LORAMUX_LISTEN": "[::]:50051",
    "LORAMUX_HTTP_LISTEN": "[::]:8000",
    "LORAMUX_METRICS_LISTEN": "[::]:9464",
    "LORAMUX_INSECURE": "true",
    "LORAMUX_STATE_DIR": STATE,
}
"""What the image sets, no HOME, and what a company's network adds. Nothing of this process's own environment."""
AS_NOBODY = (
    "setpriv",
    f"--reuid={UID}",
    f"--regid={UID}",
    "--clear-groups",
    "--no-new-privs",
    # Reading alone: the checkout and its Python may lie below a home folder that is closed to others.
    "--bounding-set=-all,+dac_read_search",
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
)
# The mount of the state directory comes first and is another file system, so it stays as it is when / is closed.
INSIDE = """
set -e
state=$1 options=$2
shift 2
for group in $GROUPS_TO_JOIN; do echo 0 > "$group/cgroup.procs"; done
unset GROUPS_TO_JOIN
ip link set lo up
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/state
mount --bind "$state" /mnt/state
mount -o "remount,bind,nosuid,nodev$options" /mnt/state
mount -o remount,bind,ro /mnt
if [ -d /usr/share/zoneinfo ]; then mount -t tmpfs -o ro tmpfs /usr/share/zoneinfo; fi
mount -t tmpfs -o ro tmpfs /dev/shm
mount -t tmpfs -o mode=1777,noexec,nosuid,nodev,size=256m tmpfs /tmp
mount -o remount,bind,ro /
exec "$@" {stdin}
"""


def impossible() -> str:
    """Why no container can be had here; empty: it can."""
    for name in ("unshare", "nsenter", "setpriv", "ip"):
        if shutil.which(name) is None:
            return f"{name} is not here"
    script = "ip link set lo up && mount -t tmpfs tmpfs /mnt && mount -o remount,bind,ro /"
    tried = subprocess.run([*_unshare(), "sh", "-ec", script], capture_output=True, text=True, check=False)
    return f"namespaces cannot be made here: {tried.stderr.strip()}" if tried.returncode else ""


def _unshare() -> list[str]:
    spaces = ["--mount", "--pid", "--net", "--ipc", "--uts"]
    return ["unshare", *spaces, "--fork", "--mount-proc", "--kill-child", "--propagation=private"]


@dataclass(frozen=True)
class Groups:
    """Control groups of version 1 that limit whoever is in the inner one; the limits are those of the outer one."""

    outer: tuple[Path, ...]

    @property
    def inner(self) -> tuple[Path, ...]:
        return tuple(folder / "box" for folder in self.outer)


@contextmanager
def control_groups(cpus: float, memory: int) -> Iterator[Groups | None]:
    """Groups with a quota of ``cpus`` processors and ``memory`` bytes; None where they cannot be made."""
    name = f"loramux-test-{os.getpid()}"
    limits = {"cpu": ("cpu.cfs_quota_us", int(cpus * 100_000)), "memory": ("memory.limit_in_bytes", memory)}
    made: list[Path] = []
    try:
        for controller, (file, value) in limits.items():
            folder = Path("/sys/fs/cgroup") / controller / name
            (folder.parent / "tasks").stat()  # of version 1 alone
            (folder / "box").mkdir(parents=True)
            made.append(folder)
            (folder / file).write_text(str(value))
    except OSError:
        groups = None
    else:
        groups = Groups(tuple(made))
    try:
        yield groups
    finally:
        for folder in made:
            for group in (folder / "box", folder):
                _remove(group)


def _remove(group: Path) -> None:
    """Remove a control group once its last process is gone."""
    deadline = time.monotonic() + 10
    while group.exists() and time.monotonic() < deadline:
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.05)  # the kernel tells nobody when the last one has gone


class Container:
    """A running server. Commands are run beside it, as ``docker exec`` does."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        *,
        before: Sequence[str] = (),
        groups: Groups | None = None,
        mount_options: str = "",
        stdin: str = "</dev/null",
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """``folder`` becomes the state directory, ``before`` what the command line begins with.

        ``mount_options`` are for the state directory, such as ``,noexec``; ``stdin`` is as a shell has it.
        """
        shutil.copytree(model, folder / "model")
        for path in (folder, *folder.rglob("*")):
            os.chown(path, UID, UID)
        self.folder = folder
        self.environment = {
            **ENVIRONMENT,
            **{f"LORAMUX_{name}": value for name, value in (("MODEL", f"{STATE}/model"), ("DEVICE", "cpu"))},
            **(variables or {}),
        }
        self._as_nobody = [*AS_NOBODY, "env", "-i", *(f"{name}={value}" for name, value in self.environment.items())]
        joined = ["env", f"GROUPS_TO_JOIN={' '.join(map(str, groups.inner)) if groups else ''}"]
        inside = [*joined, *_unshare(), "sh", "-ec", INSIDE.replace("{stdin}", stdin)]
        wrapper = (*inside, "sh", str(folder), mount_options, *self._as_nobody, *before)
        self.server = ServerProcess(
            folder, "--listen", ENVIRONMENT["LORAMUX_LISTEN"], module="loramux", wrapper=wrapper
        )

    @cache  # noqa: B019  as long as the container
    def first(self) -> int:
        """The first process inside, by its number outside."""
        outer = self.server.process.pid
        (found,) = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        return int(found)

    def command(self, *words: str | Path) -> list[str | Path]:
        return [
            "nsenter",
            "--target",
            str(self.first()),
            "--mount",
            "--pid",
            "--net",
            "--ipc",
            *self._as_nobody,
            *words,
        ]

    def run(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done

    def json(self, *words: str) -> Any:
        """What ``loramux`` prints with ``--json``."""
        return json.loads(self.run("loramux", *words, "--json").stdout)

    def processes(self) -> dict[int, tuple[str, str]]:
        """State and command line of every process inside, by its number outside."""
        space = os.stat(f"/proc/{self.first()}/ns/pid").st_ino
        found = {}
        for path in Path("/proc").iterdir():
            try:
                if path.name.isdigit() and (path / "ns/pid").stat().st_ino == space:
                    state = (path / "stat").read_text().rpartition(")")[2].split()[0]
                    found[int(path.name)] = state, (path / "cmdline").read_text().replace("\0", " ")
            except OSError:  # it has just ended
                continue
        return found

    def engine(self) -> int:
        """The engine's process, by its number outside."""
        (found,) = (pid for pid, (_, line) in self.processes().items() if "engine_process" in line)
        return found

    def close(self) -> None:
        """End it. unshare's --kill-child reaches no process that has changed its user, so the first one is killed."""
        if self.server.process.poll() is None:
            os.kill(self.first(), signal.SIGKILL)
        kill(self.server)


@contextmanager
def container(folder: Path, model: Path, **options: Any) -> Iterator[Container]:
    made = Container(folder, model, **options)
    try:
        made.server.wait_for("is ready")
        yield made
    finally:
        made.close()
