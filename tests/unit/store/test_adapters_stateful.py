"""The registry against a dictionary: whatever is done in whatever order, also over restarts, both agree."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobRequest, JobState
from loramux_server.store.maintenance.backup import backup, restore
from loramux_server.store.maintenance.doctor import examine
from loramux_server.store.records import AdapterMeta
from loramux_server.store.store import Store
from tests.adapter_files import folder_of
from tests.examples import examples

names = st.sampled_from(["x", "y"])
tenants = st.sampled_from(["t", "u"])
contents = st.sampled_from(["1", "2", "3"])
numbers = st.integers(1, 4)


def outcome(call: Callable[[], object]) -> Code | None:
    """The code of the error that a call raises, None if it does not."""
    try:
        call()
    except Error as error:
        return error.code
    return None


class Registry(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.store = Store.open(self.root / "state")
        self.versions: dict[tuple[str, str], dict[int, str]] = {}  # (tenant, name) -> number -> content
        self.last: dict[tuple[str, str], int] = {}
        self.current: dict[tuple[str, str], int] = {}
        self.canary: dict[tuple[str, str], int] = {}
        self.holds: list[tuple[str, ExitStack]] = []  # content that somebody uses
        self.pins: set[tuple[str, str, int]] = set()
        self.jobs: dict[str, tuple[str, str, str]] = {}  # unfinished job -> tenant, version, content that it needs

    def teardown(self) -> None:
        for _, hold in self.holds:
            hold.close()
        self.store.close()
        shutil.rmtree(self.root)

    @rule(name=names, tenant=tenants, content=contents, promote=st.booleans())
    def publish(self, name: str, tenant: str, content: str, promote: bool) -> None:
        folder = self.root / content
        folder.mkdir(exist_ok=True)
        (folder / "file").write_text(content)
        found = self.store.adapters.publish(name, tenant, folder, AdapterMeta(1, 1.0), promote=promote)
        key = (tenant, name)
        live = self.versions.setdefault(key, {})
        same = [n for n, c in live.items() if c == content]
        if same:
            assert found.version == same[0]
        else:
            self.last[key] = self.last.get(key, 0) + 1
            assert found.version == self.last[key]
            live[found.version] = content
        if promote:
            self.current[key] = found.version

    @rule(name=names, tenant=tenants, number=numbers)
    def promote(self, name: str, tenant: str, number: int) -> None:
        key = (tenant, name)
        code = outcome(lambda: self.store.adapters.set_alias(name, number, tenant))
        if number in self.versions.get(key, {}):
            assert code is None
            self.current[key] = number
        else:
            assert code is Code.NOT_FOUND

    @rule(name=names, tenant=tenants, number=numbers)
    def alias(self, name: str, tenant: str, number: int) -> None:
        code = outcome(lambda: self.store.adapters.set_alias(name, number, tenant, "canary"))
        there = number in self.versions.get((tenant, name), {})
        assert code is (None if there else Code.NOT_FOUND)
        if there:
            self.canary[(tenant, name)] = number

    @rule(name=names, tenant=tenants)
    def remove_alias(self, name: str, tenant: str) -> None:
        code = outcome(lambda: self.store.adapters.remove_alias(name, tenant, "canary"))
        assert code is (None if self.canary.pop((tenant, name), None) else Code.NOT_FOUND)

    @rule(name=names, tenant=tenants, number=numbers)
    def use(self, name: str, tenant: str, number: int) -> None:
        content = self.versions.get((tenant, name), {}).get(number)
        if content is not None:
            hold = ExitStack()
            hold.enter_context(
                self.store.blobs.holding([self.store.adapters.resolve(f"{name}@{number}", tenant).digest])
            )
            self.holds.append((content, hold))

    @precondition(lambda self: self.holds)
    @rule()
    def stop_using(self) -> None:
        self.holds.pop(0)[1].close()

    @rule(name=names, tenant=tenants, number=numbers, pinned=st.booleans())
    def pin(self, name: str, tenant: str, number: int, pinned: bool) -> None:
        code = outcome(lambda: self.store.adapters.pin(f"{name}@{number}", tenant, pinned))
        there = number in self.versions.get((tenant, name), {})
        assert code is (None if there else Code.NOT_FOUND)
        if there:
            (self.pins.add if pinned else self.pins.discard)((tenant, name, number))

    @rule(name=names, tenant=tenants, number=numbers)
    def begin_job(self, name: str, tenant: str, number: int) -> None:
        content = self.versions.get((tenant, name), {}).get(number)
        if content is not None:
            ref = f"{name}@{number}"
            donors = {ref: self.store.adapters.resolve(ref, tenant).digest}
            job = self.store.jobs.create(JobRequest("z", "d", tenant, init_from=ref), donors=donors)
            self.jobs[job.id] = (tenant, ref, content)

    @precondition(lambda self: self.jobs)
    @rule(how=st.sampled_from([JobState.CANCELLED, JobState.FAILED]))
    def end_job(self, how: JobState) -> None:
        error = Error(Code.INTERNAL, "x") if how is JobState.FAILED else None
        self.store.jobs.move(min(self.jobs), how, error=error)
        del self.jobs[min(self.jobs)]

    @rule(name=names, tenant=tenants, number=numbers)
    def delete_version(self, name: str, tenant: str, number: int) -> None:
        key = (tenant, name)
        live = self.versions.get(key, {})
        code = outcome(lambda: self.store.adapters.delete(f"{name}@{number}", tenant))
        if number not in live:
            assert code is Code.NOT_FOUND
        elif self.current.get(key) == number and len(live) > 1:
            assert code is Code.FAILED_PRECONDITION
        else:
            assert code is None
            del live[number]
            self.pins.discard((*key, number))
            if self.canary.get(key) == number:
                del self.canary[key]
            if self.current.get(key) == number:
                del self.current[key]

    @rule(name=names, tenant=tenants)
    def delete_name(self, name: str, tenant: str) -> None:
        key = (tenant, name)
        code = outcome(lambda: self.store.adapters.delete(name, tenant))
        assert code is (None if self.versions.get(key) else Code.NOT_FOUND)
        self.versions[key] = {}
        self.pins = {pin for pin in self.pins if pin[:2] != key}
        self.canary.pop(key, None)
        self.current.pop(key, None)

    @rule()
    def collect(self) -> None:
        self.store.collect_orphans()
        wanted = {c for live in self.versions.values() for c in live.values()} | {c for c, _ in self.holds}
        wanted |= {content for _, _, content in self.jobs.values()}
        stored = {(self.store.blobs.local_path(d) / "file").read_text() for d in self.store.blobs.digests()}
        assert stored == wanted

    @precondition(lambda self: self.versions)
    @rule()
    def restart(self) -> None:
        self.close()
        self.store = Store.open(self.root / "state")

    @precondition(lambda self: self.versions)
    @rule()
    def lose_everything_but_a_backup(self) -> None:
        backup(self.root / "state", self.root / "backup")
        self.close()
        shutil.rmtree(self.root / "state")
        restore(self.root / "backup", self.root / "state")
        shutil.rmtree(self.root / "backup")
        self.store = Store.open(self.root / "state")

    def close(self) -> None:
        """As a server that stops: what was used is so no longer."""
        while self.holds:
            self.holds.pop()[1].close()
        self.store.close()

    @invariant()
    def the_doctor_finds_nothing(self) -> None:
        assert examine(self.store.database, self.store.blobs, orphans=False) == []

    @invariant()
    def jobs_find_their_donors(self) -> None:
        for id, (tenant, ref, content) in self.jobs.items():
            job = self.store.jobs.get(id)
            path = self.store.blobs.local_path(
                self.store.adapters.resolve(job.request.init_from, tenant, job.donors).digest
            )
            assert job.request.init_from == ref
            assert (path / "file").read_text() == content

    @invariant()
    def agrees(self) -> None:
        assert {(v.owner, v.name, v.version) for v in self.store.adapters.pinned()} == self.pins
        for tenant in ("t", "u"):
            listed, _ = self.store.adapters.list(tenant)
            expected = {n: live for (t, n), live in self.versions.items() if t == tenant and live}
            assert {a.name: [v.version for v in a.versions] for a in listed} == {
                n: sorted(x) for n, x in expected.items()
            }
            for adapter in listed:
                key = (tenant, adapter.name)
                assert (adapter.current.version if adapter.current else None) == self.current.get(key)
                assert adapter.aliases.get("canary") == self.canary.get(key)
                for version in adapter.versions:
                    path = folder_of(self.store, version.ref, tenant)
                    assert (path / "file").read_text() == self.versions[key][version.version]


TestRegistry = Registry.TestCase
TestRegistry.settings = examples(10, stateful_step_count=20)
