"""Memory and processors within control groups, read from folder trees as kernels and container engines lay them out."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from loramux_server.host.control_groups import cpu_quota
from loramux_server.host.resources import host_available, host_total, process_memory, usable_cpus

GiB = 1 << 30
MiB = 1 << 20
NO_LIMIT_V1 = 9223372036854771712

V2 = "35 24 0:30 {shows} /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "{number} 24 0:{number} {shows} /sys/fs/cgroup/{at} rw,nosuid,nodev - cgroup cgroup rw,{controllers}\n"


class Machine:
    """A root folder with the files that a process of it would see."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file("proc/meminfo", f"MemTotal:  {32 * GiB // 1024} kB\nMemAvailable:  {20 * GiB // 1024} kB\n")

    def file(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def v2(self, group: str, shows: str = "/") -> Machine:
        self.file("proc/self/cgroup", f"0::{group}\n")
        self.file("proc/self/mountinfo", V2.format(shows=shows))
        return self

    def v1(self, group: str, shows: str = "/") -> Machine:
        self.file("proc/self/cgroup", f"12:memory:{group}\n4:cpu,cpuacct:{group}\n1:name=systemd:/x\n")
        mounts = [(31, "memory", "memory"), (32, "cpu,cpuacct", "cpu,cpuacct"), (33, "systemd", "xattr,name=systemd")]
        lines = (V1.format(number=number, shows=shows, at=at, controllers=what) for number, at, what in mounts)
        self.file("proc/self/mountinfo", "".join(lines))
        return self

    def memory_v2(self, at: str, limit: int | str, used: int, high: str = "max", **stat: int) -> Machine:
        folder = f"sys/fs/cgroup/{at}"
        self.file(f"{folder}/memory.max", f"{limit}\n")
        self.file(f"{folder}/memory.high", f"{high}\n")
        self.file(f"{folder}/memory.current", f"{used}\n")
        self.file(f"{folder}/memory.stat", "".join(f"{k} {v}\n" for k, v in {"anon": used, **stat}.items()))
        return self

    def memory_v1(self, at: str, limit: int, used: int, **stat: int) -> Machine:
        folder = f"sys/fs/cgroup/memory/{at}"
        self.file(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self.file(f"{folder}/memory.usage_in_bytes", f"{used}\n")
        self.file(f"{folder}/memory.stat", "".join(f"{k} {v}\n" for k, v in {"cache": 1, **stat}.items()))
        return self

    def found(self) -> tuple[int, int]:
        return host_available(self.root), host_total(self.root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_control_groups_the_host_is_the_limit(machine: Machine) -> None:
    assert machine.found() == (20 * GiB, 32 * GiB)


def test_field_13_page_cache_in_a_container_counts_as_free(machine: Machine) -> None:
    machine.v2("/").memory_v2("", 3 * GiB, 2900 * MiB, inactive_file=2000 * MiB, active_file=600 * MiB)
    assert machine.found() == (3 * GiB - 300 * MiB, 3 * GiB)


def test_field_13_reclaimable_slabs_count_as_free(machine: Machine) -> None:
    machine.v2("/").memory_v2("", 3 * GiB, 2 * GiB, slab_reclaimable=GiB, slab_unreclaimable=GiB)
    assert machine.found() == (2 * GiB, 3 * GiB)


def test_field_13_systemd_limit_of_a_service(machine: Machine) -> None:
    machine.v2("/system.slice/loramux.service")
    machine.memory_v2("system.slice/loramux.service", 4 * GiB, GiB).memory_v2("system.slice", "max", 9 * GiB)
    assert machine.found() == (3 * GiB, 4 * GiB)


def test_field_13_a_parent_may_be_the_tightest(machine: Machine) -> None:
    machine.v2("/user.slice/app.slice/x.scope").memory_v2("user.slice/app.slice/x.scope", 8 * GiB, GiB)
    machine.memory_v2("user.slice/app.slice", "max", 2 * GiB).memory_v2("user.slice", 5 * GiB, 4 * GiB)
    assert machine.found() == (GiB, 5 * GiB)


def test_memory_above_which_processes_are_slowed_down_is_a_limit(machine: Machine) -> None:
    machine.v2("/a").memory_v2("a", 8 * GiB, GiB, high=str(4 * GiB))
    assert machine.found() == (3 * GiB, 4 * GiB)


def test_field_13_version_1_in_docker_without_a_namespace(machine: Machine) -> None:
    machine.v1("/docker/4f1c", shows="/docker/4f1c")
    machine.memory_v1("", 2 * GiB, 1900 * MiB, total_inactive_file=1000 * MiB, inactive_file=7)
    assert machine.found() == (2 * GiB - 900 * MiB, 2 * GiB)


def test_field_13_version_1_nested(machine: Machine) -> None:
    machine.v1("/kubepods/burstable/pod1/c1").memory_v1("kubepods/burstable/pod1/c1", NO_LIMIT_V1, GiB)
    machine.memory_v1("kubepods/burstable/pod1", 6 * GiB, 2 * GiB).memory_v1("", NO_LIMIT_V1, 9 * GiB)
    assert machine.found() == (4 * GiB, 6 * GiB)


def test_version_1_tells_the_limit_of_parents_that_are_hidden(machine: Machine) -> None:
    machine.v1("/").memory_v1("", NO_LIMIT_V1, GiB, hierarchical_memory_limit=5 * GiB)
    assert machine.found() == (4 * GiB, 5 * GiB)


def test_field_13_both_versions_at_once(machine: Machine) -> None:
    machine.v1("/box")
    machine.file("proc/self/cgroup", "5:memory:/box\n0::/box\n")
    unified = V2.format(shows="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    machine.file("proc/self/mountinfo", (machine.root / "proc/self/mountinfo").read_text() + unified)
    machine.file("sys/fs/cgroup/unified/box/cgroup.procs", "1\n")
    machine.memory_v1("box", 2 * GiB, GiB)
    assert machine.found() == (GiB, 2 * GiB)


@pytest.mark.parametrize("group", ["/../..", "/../other", "/gone/away"])
def test_a_group_outside_of_what_is_mounted_falls_back_to_the_mounts_root(machine: Machine, group: str) -> None:
    machine.v2(group, shows="/" if ".." in group else "/docker/4f1c").memory_v2("", 3 * GiB, GiB)
    assert machine.found() == (2 * GiB, 3 * GiB)


def test_a_mount_point_with_a_blank(machine: Machine) -> None:
    machine.v2("/").memory_v2("", 3 * GiB, GiB)
    machine.file("proc/self/mountinfo", V2.format(shows="/").replace("/sys/fs/cgroup", "/my\\040groups"))
    (machine.root / "sys/fs/cgroup").rename(machine.root / "my groups")
    assert machine.found() == (2 * GiB, 3 * GiB)


def test_a_group_that_is_over_its_limit_has_nothing_left(machine: Machine) -> None:
    machine.v2("/").memory_v2("", GiB, 2 * GiB)
    assert machine.found() == (0, GiB)


@pytest.mark.parametrize("broken", ["", "max", "many"])
def test_files_that_say_nothing_are_no_limit(machine: Machine, broken: str) -> None:
    machine.v2("/a").memory_v2("a", broken, GiB)
    machine.file("sys/fs/cgroup/a/cpu.max", f"{broken}\n")
    assert (machine.found(), cpu_quota(machine.root)) == ((20 * GiB, 32 * GiB), None)


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), ("30000 10000", 3)],
)
def test_field_04_threads_follow_the_quota(machine: Machine, quota: str, cpus: int) -> None:
    machine.v2("/a/b")
    machine.file("sys/fs/cgroup/a/cpu.max", f"{quota}\n")
    machine.file("sys/fs/cgroup/a/b/cpu.max", "max 100000\n")
    assert usable_cpus(machine.root, affinity=8) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [(-1, 8), (399999, 3), (10000, 1)])
def test_field_04_threads_follow_the_quota_of_version_1(machine: Machine, quota: int, cpus: int) -> None:
    machine.v1("/docker/4f1c", shows="/docker/4f1c")
    machine.file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", f"{quota}\n")
    machine.file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert usable_cpus(machine.root, affinity=8) == cpus


def test_threads_follow_the_affinity_of_this_process() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_this_machine_tells_what_it_has() -> None:
    assert 0 < host_available() <= host_total()
    assert 0 < process_memory() < host_total()


@pytest.mark.parametrize(
    ("soft", "hard", "after"), [(256, 4096, 4096), (1024, 524_288, 65_536), (70_000, 80_000, 70_000), (512, 512, 512)]
)
def test_as_many_files_may_be_open_as_the_hard_limit_allows(soft: int, hard: int, after: int) -> None:
    code = "import resource; from loramux_server.host.resources import take_open_files; take_open_files();"
    code += "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    command = [sys.executable, "-c", code]
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip(f"this machine allows fewer than {hard} open files")
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    said = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(after), str(hard)]
