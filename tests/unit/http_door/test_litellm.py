"""LiteLLM over the HTTP door: the example of two tenants, and its errors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import asks the internet for prices
import litellm

from examples.litellm_router import ask, main, make_router
from loramux_server.core.backend import EngineInfo
from loramux_server.store.records import AdapterMeta
from tests.unit.services.adapter_files import write_adapter

from .conftest import Http
from .test_files import Tenants

pytestmark = [
    pytest.mark.slow,  # importing LiteLLM takes longer than the tests
    pytest.mark.filterwarnings("ignore:.*ReadOnly. qualifier:UserWarning"),
]


@pytest.fixture
def base_url(http: Http, info: EngineInfo, tmp_path: Path) -> str:
    """A server where each of two keys is a tenant with an adapter of its own."""
    http.access.authenticator = Tenants()
    for name, owner, b in (("acme", "ann", 0.25), ("pine", "bob", 0.5)):
        http.context.store.adapters.publish(name, owner, write_adapter(tmp_path / name, info, b=b), AdapterMeta(4, 8.0))
    return f"http://{http.server.address}/v1"


async def test_two_tenants_behind_one_router(http: Http, base_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    http.answers("In the harbour street.")
    await main(base_url, "acme=ann", "pine=bob")
    assert "acme: In the harbour street.\npine: In the harbour street.\n" in capsys.readouterr().out
    asked = {
        (command.tenant, *(entry.adapter.name for entry in command.stack.entries)) for command in http.backend.commands
    }
    assert asked == {("ann", "acme"), ("bob", "pine")}


async def test_a_key_reaches_nothing_of_another_tenant(http: Http, base_url: str) -> None:
    router = make_router(base_url, [("acme", "bob")])
    with pytest.raises(litellm.NotFoundError, match="acme"):
        await ask(router, "shop-0")
    assert http.backend.commands == []


async def test_a_completion_without_a_router(http: Http, base_url: str) -> None:
    http.answers("At nine.")
    done = await litellm.acompletion(
        "openai/acme", messages=[{"role": "user", "content": "When?"}], api_base=base_url, api_key="ann", seed=3
    )
    assert (done.choices[0].message.content, done.model) == ("At nine.", "acme@1")
    assert done.usage.total_tokens > 0
    assert http.backend.commands[-1].sampling.seed == 3
