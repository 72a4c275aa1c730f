"""Two tenants and an operator on one real server, each with a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

import loramux
from loramux import Client, Completion
from loramux_server.core.callers.keys import ApiKey
from loramux_server.core.callers.principal import Scope
from loramux_server.store.store import Store
from tests.e2e.server_process import ServerProcess, kill
from tools.measure_adapters import shipped

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PROMPT = "Where is the shop, and when does it open on a Saturday in spring? Please answer in full sentences. " * 3


@dataclass
class Tenants:
    """A server, and a client for the key of each of its callers."""

    server: ServerProcess
    operator: Client
    ann: Client
    bob: Client
    narrow: Client
    """Of ann's tenant; its key may use the adapter ``hers`` alone."""


@pytest.fixture
def tenants(state_with_base: Callable[[str], Path], start_server: Callable[[Path], ServerProcess]) -> Iterator[Tenants]:
    state, keys = state_with_base("tenants"), {name: ApiKey.generate() for name in ("operator", "ann", "bob", "narrow")}
    store = Store.open(state)
    store.keys.create(keys["operator"], "operations", Scope)
    for name in ("ann", "bob"):
        store.keys.create(keys[name], name, set(Scope) - {Scope.ADMIN})
    store.keys.create(keys["narrow"], "ann", set(Scope) - {Scope.ADMIN}, adapters=["hers"])
    store.close()
    server = start_server(state)
    try:
        with ExitStack() as clients:
            opened = {n: clients.enter_context(Client(server.address, api_key=k.text)) for n, k in keys.items()}
            yield Tenants(server, **opened)
    finally:
        kill(server)


def ask(client: Client, adapter: str) -> Completion:
    return client.generate(PROMPT, adapters=[adapter], max_tokens=8, temperature=0)


def test_tenants_share_an_adapter_and_nothing_else(tenants: Tenants) -> None:
    operator, ann, bob, narrow = tenants.operator, tenants.ann, tenants.bob, tenants.narrow
    folder = shipped()[0]
    operator.adapters.upload("ours", folder)
    for client in (ann, bob, narrow):
        with pytest.raises(loramux.NotFound):
            ask(client, "ours")
    operator.adapters.share("ours")
    assert [(found.name, found.tenant, found.shared) for found in bob.adapters.list()] == [("ours", "", True)]
    with pytest.raises(loramux.PermissionDenied):
        bob.adapters.share("ours")

    # The same prompt through the same adapter: what one tenant has computed, another never finds.
    first, again, others = ask(ann, "ours"), ask(ann, "ours"), ask(bob, "ours")
    assert (first.usage.cached_tokens, others.usage.cached_tokens) == (0, 0)
    assert again.usage.cached_tokens >= 16
    assert ask(bob, "ours").usage.cached_tokens == again.usage.cached_tokens
    assert first.text == again.text == others.text

    # Content that two tenants have alike: neither learns of the other, nor of its name.
    ann.adapters.upload("hers", folder)
    assert bob.adapters.get("ours").current.last_used_at == 0  # type: ignore[union-attr]
    assert [found.name for found in narrow.adapters.list()] == ["hers"]
    assert ask(narrow, "hers").text == first.text
    for ref in ("ours", "hers@2", "nobodys"):
        with pytest.raises(loramux.NotFound) as refused:
            ask(narrow, ref)
        assert refused.value.message.replace(ref, "X") == (
            "adapter 'X' not found (list the adapters you may use with: loramux adapters ls)"
        )
    with pytest.raises(loramux.PermissionDenied):
        narrow.adapters.upload("another", folder)

    assert (bob.info().memory_bytes, bob.info().adapters_resident) == ({}, {})
    assert operator.info().memory_bytes
    page = tenants.server.metrics()
    assert 'loramux_prompt_tokens_total{adapter="ours",tenant="bob"}' in page
    assert operator.adapters.unshare("ours") == 1
    with pytest.raises(loramux.NotFound):
        ask(bob, "ours")
    assert ask(operator, "ours").text == ask(ann, "hers").text == first.text
    ann.adapters.delete("hers")
    page = tenants.server.metrics()
    assert not any(
        'adapter="hers"' in line or 'tenant="bob"' in line for line in page.splitlines() if "tokens_total" in line
    )
