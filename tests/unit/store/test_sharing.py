"""Adapters that all tenants may use: rows of their own, with the content of their maker's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loramux_server.core.callers.principal import Principal
from loramux_server.core.errors import Code, Error
from loramux_server.core.types import StackItem
from loramux_server.store.records import SHARED, AdapterMeta, Composition, VersionState
from loramux_server.store.store import Store

Make = Callable[[str], Path]
META = AdapterMeta(rank=8, alpha=16, asked_with="messages", metrics={"eval_loss": 0.5}, metadata={"who": "me"})


def error_of(call: Callable[[], object]) -> Error:
    with pytest.raises(Error) as caught:
        call()
    return caught.value


def test_a_shared_version_is_everybodys_and_its_makers_own_stays_its_own(store: Store, folder: Make) -> None:
    for content in "ab":
        store.adapters.publish("json", "ops", folder(content), META)
    shared = store.adapters.share("json@1", "ops")
    assert (shared.name, shared.owner, shared.current and shared.current.version) == ("json", SHARED, 1)
    assert [version.shared for version in shared.versions] == [True]
    assert store.adapters.resolve("json", "t").digest == store.adapters.resolve("json@1", "ops").digest
    assert store.adapters.resolve("json", "ops").version == 2  # its own comes first
    own = store.adapters.list("ops")[0][0]
    assert [(version.version, version.shared) for version in own.versions] == [(1, True), (2, False)]
    assert (own.owner, own.shared) == ("ops", True)
    seen = store.adapters.list("t")[0][0]
    assert (seen.owner, seen.shared, store.adapters.get_version("json", "t").shared) == (SHARED, True, True)


def test_sharing_another_version_moves_it_on_and_the_first_can_come_back(store: Store, folder: Make) -> None:
    for content in "ab":
        store.adapters.publish("json", "ops", folder(content), META)
    store.adapters.share("json@1", "ops")
    held = store.adapters.resolve("json", "t")
    assert store.adapters.share("json", "ops").aliases == {"latest": 2}
    assert store.adapters.resolve("json", "t").digest == store.adapters.resolve("json@2", "ops").digest
    assert store.adapters.resolve("json@1", "t") == held
    back = store.adapters.share("json@1", "ops")
    assert (back.aliases, len(back.versions), back.previous) == ({"latest": 1}, 2, 2)


def test_what_is_shared_stays_when_its_source_goes(store: Store, folder: Make) -> None:
    store.adapters.publish("json", "ops", folder("a"), META)
    store.adapters.share("json", "ops")
    store.adapters.delete("json", "ops")
    assert store.collect_orphans() == ()
    assert store.adapters.resolve("json", "t").version == 1
    assert store.adapters.resolve("json", "ops").version == 1  # the shared one, now that there is no own
    assert error_of(lambda: store.adapters.share("json", "ops")).reason == "ADAPTER_IS_SHARED"
    assert [gone.version for gone in store.adapters.unshare("json", "ops")] == [1]
    assert len(store.collect_orphans()) == 1
    store.adapters.publish("json", "ops", folder("b"), META)
    assert store.adapters.share("json", "ops").current is not None
    assert store.adapters.resolve("json", "t").version == 2  # numbers are never used again


def test_a_tenants_own_adapter_comes_first_and_is_not_touched(store: Store, folder: Make) -> None:
    store.adapters.publish("json", "ops", folder("a"), META)
    own = store.adapters.publish("json", "t", folder("own"), META)
    store.adapters.share("json", "ops")
    assert store.adapters.resolve("json", "t").digest == own.digest
    assert not store.adapters.list("t")[0][0].shared
    store.adapters.unshare("json", "ops")
    assert store.adapters.resolve("json", "t").digest == own.digest
    assert store.adapters.resolve("json", "ops").version == 1
    assert error_of(lambda: store.adapters.resolve("json", "u")).code is Code.NOT_FOUND


def test_a_shared_version_names_nothing_else_of_its_maker(store: Store, folder: Make) -> None:
    composed = Composition("cat", (StackItem("secret@1"),), 0.0)
    meta = replace(META, job_id="job-1", dataset_digest="d" * 64, parent="secret@1", composed=composed)
    meta = replace(meta, trained_on=((StackItem("secret@2"),),))
    store.adapters.publish("json", "ops", folder("a"), meta)
    store.adapters.share("json", "ops")
    assert store.adapters.get_version("json", "t").meta == META
    assert store.adapters.get_version("json", "ops").meta == meta


def test_nobody_changes_a_shared_adapter_but_who_may_share(store: Store, folder: Make) -> None:
    store.adapters.publish("json", "ops", folder("a"), META)
    store.adapters.share("json", "ops")
    for call in (
        lambda: store.adapters.delete("json", "t"),
        lambda: store.adapters.delete("json@1", "t"),
        lambda: store.adapters.set_alias("json", 1, "t"),
        lambda: store.adapters.remove_alias("json", "t", "canary"),
        lambda: store.adapters.pin("json", "t"),
        lambda: store.adapters.pin("json", "t", False),
        lambda: store.adapters.share("json", "t"),
    ):
        refused = error_of(call)
        assert (refused.code, refused.reason) == (Code.PERMISSION_DENIED, "ADAPTER_IS_SHARED")
        assert "loramux adapters unshare json" in refused.message


def test_only_what_can_be_used_is_shared(store: Store, folder: Make) -> None:
    digest = store.adapters.publish("json", "ops", folder("a"), META).digest
    store.adapters.files.quarantine(digest, "damaged: all of it")
    assert error_of(lambda: store.adapters.share("json@1", "ops")).reason == "ADAPTER_NOT_READY"
    for ref in ("json@7", "nobodys"):
        assert error_of(lambda ref=ref: store.adapters.share(ref, "ops")).code is Code.NOT_FOUND
    narrow = Principal("ops", frozenset(), adapters=frozenset({"other"}))
    assert error_of(lambda: store.adapters.share("json", narrow)).code is Code.NOT_FOUND
    assert error_of(lambda: store.adapters.unshare("json", "ops")).code is Code.NOT_FOUND


def test_damage_is_everybodys_as_the_content_is(store: Store, folder: Make) -> None:
    digest = store.adapters.publish("json", "ops", folder("a"), META).digest
    store.adapters.share("json", "ops")
    store.adapters.files.quarantine(digest, "damaged: all of it")
    assert error_of(lambda: store.adapters.resolve("json", "t")).code is Code.DATA_LOSS
    store.adapters.publish("json", "ops", folder("a"), META)  # the same files heal it
    assert store.adapters.get_version("json", "t").state is VersionState.READY


def test_a_use_is_seen_by_its_tenant_alone(store: Store, folder: Make) -> None:
    """Neither another tenant with the same content learns of it, nor whoever shares it or has it shared."""
    digest = store.adapters.publish("json", "ops", folder("a"), META).digest
    store.adapters.share("json", "ops")
    for tenant in ("t", "u"):
        store.adapters.publish("twin", tenant, folder("a"), META)
    store.adapters.touch([digest], "t")
    for flush in (False, True):
        if flush:
            store.adapters.flush()
        assert store.adapters.get_version("twin", "t").last_used is not None
        seen = [("twin", "u"), ("json", "ops"), ("json", "t"), ("json", "u")]
        assert [store.adapters.get_version(*one).last_used for one in seen] == [None] * 4


def test_a_principal_without_a_tenant_cannot_be() -> None:
    """Its adapters would be everybody's."""
    with pytest.raises(ValueError, match="tenant"):
        Principal(SHARED, frozenset())
