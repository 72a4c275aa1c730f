"""A base from a hub: every file from one commit, with the content that the commit has, recorded; never its code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.model.base import source
from loramux_server.model.base.quantize import prepare_base
from loramux_server.model.base.source import find_cached, locate, read_marker
from tests.hub import Hub, files_of, serving
from tests.tiny import write_model

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"), "llama")


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A repository whose ``main`` is OLD and whose branch ``next`` is NEW, with another chat template and code."""
    old = files_of(tiny)
    new = {**old, "chat_template.jinja": b"{{ 'new' }}", "modeling_evil.py": b"raise SystemExit", "x.pkl": b"\x80"}
    with serving(Hub({OLD: old, NEW: new}, {"main": OLD, "next": NEW})) as hub:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


def fetched(hub: Hub) -> list[str]:
    return [path for path in hub.asked if "/resolve/" in path]


def test_every_file_is_of_the_commit_that_the_revision_meant_at_first(hub: Hub, tmp_path: Path) -> None:
    hub.moves_to = NEW
    folder = prepare_base("org/tiny", tmp_path)
    assert len(fetched(hub)) > 4
    assert all(path.startswith(f"/org/tiny/resolve/{OLD}/") for path in fetched(hub))
    made = read_marker(folder)
    assert made["source"]["commit"] == OLD
    assert (folder / "chat_template.jinja").read_bytes() == hub.commits[OLD]["chat_template.jinja"]
    # The branch has moved on; what is served stays.
    hub.asked.clear()
    assert prepare_base("org/tiny", tmp_path) == folder
    assert hub.asked == []
    # A commit that is named is that commit, with or without the hub.
    assert prepare_base(f"org/tiny@{OLD}", tmp_path) == folder
    assert hub.asked == []
    assert find_cached(f"org/tiny@{NEW}", tmp_path / "base", source.SETTINGS) is None


def test_a_revision_is_another_base_and_brings_no_code(hub: Hub, tmp_path: Path) -> None:
    old, new = prepare_base("org/tiny", tmp_path), prepare_base("org/tiny@next", tmp_path)
    assert new != old
    assert read_marker(new)["source"]["commit"] == NEW
    assert (new / "chat_template.jinja").read_text() == "{{ 'new' }}"
    assert not [path for path in fetched(hub) if path.endswith((".py", ".pkl"))]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"])
def test_a_file_that_is_not_what_the_commit_has_is_refused(hub: Hub, name: str, tmp_path: Path) -> None:
    whole = hub.commits[OLD][name]
    hub.lies[name] = whole[:-2] + bytes(2)  # as long as it should be, which is all that the hub's client checks
    with pytest.raises(Error, match=name) as caught:
        prepare_base("org/tiny", tmp_path)
    assert caught.value.code is Code.DATA_LOSS
    assert list((tmp_path / "base").glob("[!.]*")) == []
    # The message says what to do.
    del hub.lies[name]
    Path(caught.value.message.split("delete ")[1].split(" and start")[0]).unlink()
    assert prepare_base("org/tiny", tmp_path).is_dir()


def test_a_hub_that_gives_no_commit_is_refused(hub: Hub) -> None:
    hub.commits["main"] = hub.commits[OLD]
    hub.branches.clear()
    with pytest.raises(Error, match="not the commit") as caught:
        locate("org/tiny")
    assert caught.value.violations[0].field == "model"


@pytest.mark.parametrize("known", [True, False], ids=["an architecture of transformers", "one of its own"])
def test_code_of_a_model_is_never_run(tiny: Path, known: bool, tmp_path: Path) -> None:
    model = tmp_path / "evil"
    shutil.copytree(tiny, model)
    proof = tmp_path / "ran"
    (model / "evil.py").write_text(f"open({str(proof)!r}, 'w')\n")
    config = json.loads((model / "config.json").read_text())
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")
    config["auto_map"] = dict.fromkeys(names, "evil.Evil")
    config["attn_implementation"] = "kernels-community/evil"
    if not known:
        config["model_type"] = "evil"
    (model / "config.json").write_text(json.dumps(config))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "auto_map": config["auto_map"]}))
    if known:
        assert prepare_base(str(model), tmp_path).is_dir()
    else:
        with pytest.raises(Error, match="code of its own") as caught:
            prepare_base(str(model), tmp_path)
        assert "trust_remote_code" not in caught.value.message
    assert not proof.exists()
