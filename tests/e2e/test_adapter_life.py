"""Adapters on a real server: merged, pinned, aliased, deleted, backed up beside it, and checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import loramux
from loramux import Client
from loramux.cli import main
from tests.e2e.server_process import ServerProcess
from tools.measure_adapters import shipped

pytestmark = pytest.mark.e2e
QUESTION = [{"role": "user", "content": "What time do you open on Saturday?"}]


def answer(client: Client, adapters: dict[str, float]) -> tuple[int, ...]:
    return client.generate(messages=QUESTION, adapters=adapters, max_tokens=12, temperature=0).choices[0].token_ids


@pytest.mark.slow
def test_a_merge_answers_as_its_stack(client: Client) -> None:
    first, second = (folder.name for folder in shipped()[:2])
    stack = {first: 0.9, second: 0.4}
    version = client.adapters.compose("e2e-mix", stack)
    assert version.composed is not None
    assert version.composed.error == 0
    assert answer(client, {"e2e-mix": 1.0}) == answer(client, stack)
    small = client.adapters.merge("e2e-mix", stack, method="svd", rank=4)
    assert (small.version, small.rank) == (2, 4)
    back = client.adapters.rollback("e2e-mix")
    assert (back.current and back.current.version, back.previous_version) == (1, 2)
    assert client.adapters.promote("e2e-mix", 2).previous_version == 1
    assert small.composed is not None
    assert 0 < small.composed.error < 1
    assert client.adapters.delete("e2e-mix") == 2


@pytest.mark.slow
def test_field_18_weights_too_large_for_the_model_are_refused(client: Client, tmp_path: Path) -> None:
    """Finite, of the right shapes, and with them no logit is a number."""
    source = shipped()[0]
    tensors = load_file(source / "adapter_model.safetensors")
    huge = {name: torch.full_like(tensor, 1e20) for name, tensor in tensors.items()}
    save_file(huge, tmp_path / "adapter_model.safetensors")
    shutil.copy(source / "adapter_config.json", tmp_path)
    with pytest.raises(loramux.InvalidArgument, match="not finite"):
        client.adapters.upload("e2e-huge", tmp_path)
    with pytest.raises(loramux.NotFound):
        client.adapters.get("e2e-huge")


def test_alias_pin_and_delete(client: Client) -> None:
    name = shipped()[0].name
    client.adapters.set_alias(name, 1, alias="best")
    assert answer(client, {f"{name}@best": 1.0}) == answer(client, {name: 1.0})
    assert client.adapters.set_alias(name, 0, alias="best").aliases == {}
    with pytest.raises(loramux.NotFound):
        answer(client, {f"{name}@best": 1.0})
    client.adapters.pin(name)
    current = client.adapters.get(name).current
    assert current is not None
    assert (current.pinned, current.tier) == (True, "device")
    assert current.last_used_at > 0
    assert not client.adapters.unpin(name).versions[0].pinned


def test_share_and_unshare(client: Client) -> None:
    name = shipped()[0].name
    shared = client.adapters.share(name)
    assert (shared.tenant, shared.shared, [version.version for version in shared.versions]) == ("", True, [1])
    own = client.adapters.get(name)  # without keys the caller is the tenant that shares
    assert (own.tenant, own.shared, own.versions[0].shared) == ("default", True, True)
    assert name in [adapter.name for adapter in client.adapters.list() if adapter.shared]
    assert client.adapters.unshare(name) == 1
    assert not client.adapters.get(name).shared
    with pytest.raises(loramux.NotFound, match="is shared"):
        client.adapters.unshare(name)


def test_a_backup_beside_the_server(
    client: Client, server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(word) for word in server.process.args]  # type: ignore[union-attr]
    state = words[words.index("--state-dir") + 1]
    assert main(["doctor", "--state-dir", state]) == 0
    assert main(["backup", str(tmp_path / "backup"), "--state-dir", state]) == 0
    assert main(["restore", "--verify", str(tmp_path / "backup")]) == 0
    assert "is sound" in capsys.readouterr().out
    assert answer(client, {})  # and the server goes on
