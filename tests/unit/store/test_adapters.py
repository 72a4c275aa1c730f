"""The registry: immutable versions, aliases that move, tenants apart, nothing published twice."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import event

from loramux_server.core.callers.principal import Principal
from loramux_server.core.errors import Code, Error
from loramux_server.core.types import StackItem
from loramux_server.store.records import SHARED, AdapterMeta, VersionState
from loramux_server.store.store import Store
from tests.adapter_files import folder_of

Make = Callable[[str], Path]
META = AdapterMeta(rank=4, alpha=8.0)


def code_of(call: Callable[[], object]) -> Code:
    with pytest.raises(Error) as caught:
        call()
    return caught.value.code


def test_everything_said_about_a_version_is_kept(store: Store, folder: Make) -> None:
    meta = AdapterMeta(
        rank=4,
        alpha=8.5,
        base_fingerprint="base",
        target_modules=("q_proj", "v_proj"),
        layers=(1, 2),
        job_id="job-1",
        dataset_digest="d" * 64,
        parent="acme@1",
        trained_on=((StackItem("pine@2", 1.3),), ()),
        metrics={"loss": 0.5},
        metadata={"team": "x"},
    )
    published = store.adapters.publish("acme", "t", folder("a"), meta)
    assert published.meta == meta
    assert (published.ref, published.current, published.state) == ("acme@1", True, VersionState.READY)
    assert store.adapters.get_version("acme@1", "t") == published
    assert store.adapters.get("acme", "t").current == published
    resolved = store.adapters.resolve("acme", "t")
    assert (resolved.ref, resolved.rank, resolved.digest) == ("acme@1", 4, published.digest)
    assert store.blobs.reader.read(resolved.digest)["adapter_model.safetensors"] == b"a"


def test_versions_count_up_and_the_name_follows(store: Store, folder: Make) -> None:
    for i, content in enumerate("abc", start=1):
        assert store.adapters.publish("acme", "t", folder(content), META).version == i
    assert store.adapters.resolve("acme", "t").version == 3
    assert store.adapters.resolve("acme@1", "t").version == 1
    store.adapters.set_alias("acme", 2, "t")
    assert store.adapters.resolve("acme", "t").version == 2
    assert [v.current for v in store.adapters.get("acme", "t").versions] == [False, True, False]


def test_the_same_content_is_one_version(store: Store, folder: Make) -> None:
    first = store.adapters.publish("acme", "t", folder("a"), META)
    store.adapters.publish("acme", "t", folder("b"), META)
    assert store.adapters.publish("acme", "t", folder("a"), META).version == first.version
    assert store.adapters.resolve("acme", "t").version == 1
    assert store.adapters.publish("other", "t", folder("a"), META).version == 1


def test_candidates_are_not_promoted(store: Store, folder: Make) -> None:
    store.adapters.publish("acme", "t", folder("a"), META, promote=False)
    assert code_of(lambda: store.adapters.resolve("acme", "t")) is Code.FAILED_PRECONDITION
    assert store.adapters.resolve("acme@1", "t").version == 1
    assert store.adapters.get("acme", "t").current is None


def test_named_aliases(store: Store, folder: Make) -> None:
    store.adapters.publish("acme", "t", folder("a"), META)
    store.adapters.publish("acme", "t", folder("b"), META)
    store.adapters.set_alias("acme", 1, "t", "prod")
    assert store.adapters.resolve("acme@prod", "t").version == 1
    assert store.adapters.get("acme@prod", "t").aliases == {"latest": 2, "prod": 1}
    assert code_of(lambda: store.adapters.resolve("acme@nope", "t")) is Code.NOT_FOUND
    assert code_of(lambda: store.adapters.get("acme@nope", "t")) is Code.NOT_FOUND
    assert code_of(lambda: store.adapters.set_alias("acme", 1, "t", "17")) is Code.INVALID_ARGUMENT


def test_field_40_a_name_remembers_what_it_meant(store: Store, folder: Make) -> None:
    for content in ("a", "b", "c"):
        store.adapters.publish("acme", "t", folder(content), META, promote=content != "b")
    assert store.adapters.get("acme", "t").previous == 1  # the second was a candidate and never promoted
    store.adapters.set_alias("acme", 3, "t")
    assert store.adapters.get("acme", "t").previous == 1  # it meant that already
    store.adapters.set_alias("acme", 1, "t")
    assert store.adapters.get("acme", "t").previous == 3
    store.adapters.set_alias("acme", 2, "t", "canary")
    assert store.adapters.get("acme", "t").previous == 3
    store.adapters.delete("acme@3", "t")
    assert store.adapters.get("acme", "t").previous == 0


def test_another_tenants_adapter_is_as_absent_as_one_that_never_was(store: Store, folder: Make) -> None:
    store.adapters.publish("acme", "t", folder("a"), META)
    messages = []
    for tenant, ref in (("u", "acme"), ("t", "acmf")):
        with pytest.raises(Error) as caught:
            store.adapters.resolve(ref, tenant)
        assert caught.value.code is Code.NOT_FOUND
        messages.append(caught.value.message.replace(ref, "X"))
    assert messages[0] == messages[1]
    for call in (
        lambda: store.adapters.delete("acme", "u"),
        lambda: store.adapters.set_alias("acme", 1, "u"),
        lambda: store.adapters.pin("acme", "u"),
        lambda: store.adapters.get("acme", "u"),
    ):
        assert code_of(call) is Code.NOT_FOUND
    assert store.adapters.list("u") == ((), "")


def test_shared_adapters_are_seen_by_all_and_changed_by_none(store: Store, folder: Make) -> None:
    store.adapters.publish("style", SHARED, folder("a"), META)
    assert store.adapters.resolve("style", "t").version == 1
    assert code_of(lambda: store.adapters.delete("style", "t")) is Code.PERMISSION_DENIED
    store.adapters.publish("style", "t", folder("b"), META)
    assert store.adapters.resolve("style", "t").digest != store.adapters.resolve("style", "u").digest
    assert [(a.name, a.owner) for a in store.adapters.list("t")[0]] == [("style", "t")]
    store.adapters.delete("style", "t")
    assert store.adapters.resolve("style", "t") == store.adapters.resolve("style", "u")


def test_a_key_with_a_list_finds_no_other_adapter(store: Store, folder: Make) -> None:
    for name in ("acme", "birch"):
        store.adapters.publish(name, "t", folder(name), META)
    store.adapters.publish("style", SHARED, folder("style"), META)
    key = Principal("t", frozenset(), adapters=frozenset({"birch", "cedar"}))
    assert [found.name for found in store.adapters.list(key)[0]] == ["birch"]
    assert store.adapters.count(key) == 1
    assert store.adapters.resolve("birch", key) == store.adapters.resolve("birch", "t")
    messages = set()
    for name in ("acme", "style", "cedar", "nobodys"):
        for call in (
            lambda name=name: store.adapters.resolve(f"{name}@1", key),
            lambda name=name: store.adapters.get(f"{name}@1", key),
            lambda name=name: store.adapters.get_version(f"{name}@1", key),
            lambda name=name: store.adapters.delete(f"{name}@1", key),
            lambda name=name: store.adapters.pin(f"{name}@1", key),
            lambda name=name: store.adapters.set_alias(name, 1, key),
        ):
            with pytest.raises(Error) as caught:
                call()
            assert caught.value.code is Code.NOT_FOUND
            messages.add(caught.value.message.replace(name, "X"))
    assert len(messages) == 1
    nothing = Principal("t", frozenset(), adapters=frozenset())
    assert store.adapters.list(nothing) == ((), "")


def test_deleted_numbers_are_never_used_again(store: Store, folder: Make) -> None:
    for content in "ab":
        store.adapters.publish("acme", "t", folder(content), META)
    assert code_of(lambda: store.adapters.delete("acme@2", "t")) is Code.FAILED_PRECONDITION
    store.adapters.set_alias("acme", 2, "t", "prod")
    store.adapters.set_alias("acme", 1, "t")
    assert [v.version for v in store.adapters.delete("acme@2", "t")] == [2]
    assert code_of(lambda: store.adapters.resolve("acme@2", "t")) is Code.NOT_FOUND
    assert code_of(lambda: store.adapters.resolve("acme@prod", "t")) is Code.NOT_FOUND
    assert store.adapters.publish("acme", "t", folder("b"), META).version == 3
    assert [v.version for v in store.adapters.delete("acme", "t")] == [1, 3]
    assert code_of(lambda: store.adapters.resolve("acme", "t")) is Code.NOT_FOUND
    assert store.adapters.list("t") == ((), "")
    assert store.adapters.publish("acme", "t", folder("a"), META).version == 4


def test_deleting_the_only_version_by_number_deletes_the_name(store: Store, folder: Make) -> None:
    store.adapters.publish("acme", "t", folder("a"), META)
    store.adapters.delete("acme@1", "t")
    assert code_of(lambda: store.adapters.get("acme", "t")) is Code.NOT_FOUND


def test_files_go_when_no_version_needs_them_and_nobody_uses_them(store: Store, folder: Make) -> None:
    one = store.adapters.publish("acme", "t", folder("a"), META)
    store.adapters.publish("twin", "t", folder("a"), META)
    store.adapters.delete("acme", "t")
    assert store.collect_orphans() == ()
    store.adapters.delete("twin", "t")
    with store.blobs.holding([one.digest]):
        assert store.collect_orphans() == ()
    assert store.collect_orphans() == (one.digest,)


def test_quarantine_answers_with_its_reason_until_published_again(store: Store, folder: Make) -> None:
    store.adapters.publish("acme", "t", folder("a"), META)
    store.adapters.files.quarantine(store.adapters.get_version("acme@1", "t").digest, "the files are damaged")
    with pytest.raises(Error, match="the files are damaged") as caught:
        store.adapters.resolve("acme", "t")
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert code_of(lambda: store.adapters.set_alias("acme", 1, "t")) is Code.FAILED_PRECONDITION
    store.adapters.publish("acme", "t", folder("a"), META)
    assert store.adapters.resolve("acme", "t").version == 1


def test_lost_files_are_data_loss(store: Store, folder: Make) -> None:
    store.adapters.publish("acme", "t", folder("a"), META)
    shutil.rmtree(folder_of(store, "acme", "t"))
    assert code_of(lambda: store.adapters.resolve("acme", "t")) is Code.DATA_LOSS


def test_pins(store: Store, folder: Make) -> None:
    store.adapters.publish("acme", "t", folder("a"), META)
    assert store.adapters.pin("acme", "t").pinned
    assert [v.ref for v in store.adapters.pinned()] == ["acme@1"]
    assert not store.adapters.pin("acme@1", "t", pinned=False).pinned
    store.adapters.pin("acme", "t")
    store.adapters.delete("acme", "t")
    assert store.adapters.pinned() == ()


def test_last_use_is_seen_at_once_and_survives(tmp_path: Path, folder: Make) -> None:
    clock = iter(range(1000, 2000))
    store = Store.open(tmp_path / "state", now=lambda: float(next(clock)))
    digest = store.adapters.publish("acme", "t", folder("a"), META).digest
    assert store.adapters.get_version("acme", "t").last_used is None
    store.adapters.touch([digest], "t")
    used = store.adapters.get_version("acme", "t").last_used
    assert used is not None
    assert store.adapters.list("t")[0][0].versions[0].last_used == used
    store.close()
    again = Store.open(tmp_path / "state")
    assert again.adapters.get_version("acme", "t").last_used == used
    again.close()


def test_pages_hold_every_adapter_once(store: Store, folder: Make) -> None:
    names = sorted(f"a{i}" for i in range(25))
    for name in names:
        store.adapters.publish(name, "t" if name < "a2" else SHARED, folder("same"), META)
    seen: list[str] = []
    token = ""
    while True:
        page, token = store.adapters.list("t", page_size=10, page_token=token)
        seen += [a.name for a in page]
        if not token:
            break
    assert seen == names
    assert (store.adapters.count("t"), store.adapters.count("other")) == (25, 25 - sum(n < "a2" for n in names))
    assert code_of(lambda: store.adapters.list("t", page_token="nonsense")) is Code.INVALID_ARGUMENT
    assert code_of(lambda: store.adapters.list("t", page_size=0)) is Code.INVALID_ARGUMENT


def test_the_database_looks_for_a_prefix(store: Store, folder: Make) -> None:
    """Few matches among many names cost as many statements as one page, not one for each name that does not match."""
    for name in ("b_0", "bx0", *(f"c{i}" for i in range(20)), "d.0", "dx0"):
        store.adapters.publish(name, "t", folder("same"), META)
    statements: list[str] = []
    with store.database.read() as connection:
        engine = connection.engine
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    for prefix, expected in {"b_": ["b_0"], "d.": ["d.0"], "d": ["d.0", "dx0"], "e": [], "B": []}.items():
        statements.clear()
        page, token = store.adapters.list("t", prefix=prefix, page_size=2)
        assert ([a.name for a in page], token) == (expected, "")
        assert sum(s.startswith("SELECT") for s in statements) <= 3
    page, token = store.adapters.list("t", prefix="c", page_size=15)
    rest, end = store.adapters.list("t", prefix="c", page_size=15, page_token=token)
    assert (sorted(a.name for a in (*page, *rest)), end) == (sorted(f"c{i}" for i in range(20)), "")


def test_threads_publish_without_losing_or_doubling(store: Store, folder: Make) -> None:
    """Eight threads, three contents each, two contents shared by all: one version per content, none lost."""
    published: list[tuple[str, int]] = []
    start = threading.Barrier(8)

    shared = {content: folder(content) for content in ("both", "also-both")}

    def work(i: int) -> None:
        own = folder(f"own-{i}")
        start.wait()
        for content, path in (("both", shared["both"]), (own.name, own), ("also-both", shared["also-both"])):
            published.append((content, store.adapters.publish("acme", "t", path, META).version))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = dict(published)
    assert len(published) == 24
    assert set(published) == set(versions.items())  # the same number for the same content, every time
    assert sorted(versions.values()) == list(range(1, 11))
    assert len(store.adapters.get("acme", "t").versions) == 10


def test_a_stack_is_resolved_as_of_one_moment(store: Store, folder: Make) -> None:
    for name in ("x", "y"):
        store.adapters.publish(name, "t", folder("a"), META)
    assert [a.ref for a in store.adapters.resolve_all(["y", "x@1"], "t")] == ["y@1", "x@1"]
    assert store.adapters.resolve_all([], "t") == ()
    with pytest.raises(Error, match="'z'"):
        store.adapters.resolve_all(["x", "z"], "t")
