"""Plain prompts, continuations and ids, against transformers' own tokenizers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.core.errors import Code, Error
from loramux_server.text import TextTokenizer
from tests.examples import examples
from tests.unit.text.templates import FAMILIES
from tests.unit.text.text_models import CONTROL, byte_level_folder

KINDS = ["smollm", "byte-level", "byte-level-bos", "sentencepiece", "sentencepiece-legacy"]
PIECES = [
    *CONTROL,
    "<s>",
    "</s>",
    "<think>",
    " ",
    "\n",
    "\n\n",
    "Paris",
    " is",
    "東京",
    "🙂",
    "👩‍👩‍👧",
    "1234",
    "é",
    "\u0301",
    "\0",
]
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_decoding_equal_transformers(kind: str, tokenizer_folders: dict[str, Path], oracles: Any) -> None:
    tokenizer, oracle = TextTokenizer.load(tokenizer_folders[kind]), oracles(tokenizer_folders[kind])

    @examples(100)
    @given(text=texts, random_ids=st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    def equal(text: str, random_ids: list[int]) -> None:
        ids = tokenizer.encode(text)
        assert ids == oracle(text)["input_ids"]
        for each in (ids, random_ids):
            for skip in (True, False):
                assert tokenizer.decode(each, skip_special_tokens=skip) == oracle.decode(each, skip_special_tokens=skip)

    equal()
    assert tokenizer.vocab_size == len(oracle)
    assert tokenizer.special_ids == set(oracle.all_special_ids) | {
        id for id, token in oracle.added_tokens_decoder.items() if token.special
    }
    assert tokenizer.bos_token_id == oracle.bos_token_id
    assert tokenizer.eos_token_id == oracle.eos_token_id


def test_bos_is_added_where_the_tokenizer_says_so(tokenizer_folders: dict[str, Path]) -> None:
    for kind in ("byte-level-bos", "sentencepiece"):
        tokenizer = TextTokenizer.load(tokenizer_folders[kind])
        assert tokenizer.encode("Paris")[0] == tokenizer.bos_token_id
        assert tokenizer.bos_token_id not in tokenizer.encode_continuation("Paris")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("continuation", ["Paris", " Paris", "\nParis", "4", "is", "  two", "東", "🙂"])
def test_a_continuation_adds_nothing_of_its_own(
    kind: str, continuation: str, tokenizer_folders: dict[str, Path]
) -> None:
    tokenizer = TextTokenizer.load(tokenizer_folders[kind])
    prompt = "The capital of France"
    ids = tokenizer.encode(prompt) + tokenizer.encode_continuation(continuation)
    assert tokenizer.decode(ids) == prompt + continuation


def test_field_05_end_tokens_are_those_of_all_files(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path, eos_token="<|im_end|>")
    own = TextTokenizer.load(folder).eos_token_id
    assert own == CONTROL.index("<|im_end|>")
    (folder / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 0}}))
    assert set(TextTokenizer.load(folder).eos_token_ids) == {0, own}
    for named in (4, [4, own], [4, None, "x", True, -1]):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
        tokenizer = TextTokenizer.load(folder)
        assert set(tokenizer.eos_token_ids) == {4, own, 0}
        assert tokenizer.eos_token_id == own
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": None}))
    assert set(TextTokenizer.load(folder).eos_token_ids) == {own, 0}


@pytest.mark.parametrize("made", [False, True])
def test_field_05_a_default_of_the_model_class_ends_nothing(made: bool, tmp_path: Path) -> None:
    """LlamaConfig names token 2 unless told otherwise; in this vocabulary that may be any word."""
    folder = byte_level_folder(tmp_path, eos_token="<|im_end|>")
    word = TextTokenizer.load(folder).encode("a")[0]
    (folder / "config.json").write_text(json.dumps({"eos_token_id": word}))
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": word, "_from_model_config": True} if made else {})
    )
    assert TextTokenizer.load(folder).eos_token_ids == (CONTROL.index("<|im_end|>"),)
    byte_level_folder(tmp_path)  # a tokenizer that names none: then it is all there is
    assert TextTokenizer.load(folder).eos_token_ids == (word,)


@pytest.mark.parametrize("family", FAMILIES)
def test_field_05_the_token_that_the_template_puts_after_an_answer_ends_it(family: str, tmp_path: Path) -> None:
    template, bos, eos = FAMILIES[family]
    tokenizer = TextTokenizer.load(byte_level_folder(tmp_path, template, bos_token=bos, eos_token="<|endoftext|>"))
    assert {tokenizer.spelling(id) for id in tokenizer.eos_token_ids} == {eos, "<|endoftext|>"}


def test_field_05_an_end_token_is_no_part_of_an_answer_though_it_is_not_special(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path, eos_token="<|endoftext|>")
    end = TextTokenizer.load(folder).encode("</think>")[0]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    tokenizer = TextTokenizer.load(folder)
    said = tokenizer.encode_continuation("Paris")
    assert end not in tokenizer.special_ids
    assert tokenizer.decode_answer([*said, end]) == tokenizer.decode_answer([*said, 0]) == "Paris"
    assert tokenizer.decode_answer(said) == "Paris"
    assert tokenizer.decode_answer([]) == ""


def test_field_05_a_template_that_ends_no_answer_names_no_token(tmp_path: Path) -> None:
    for template in (
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}<|im_end|>",
        "{{ raise_exception('never') }}",
    ):
        folder = byte_level_folder(tmp_path, template, eos_token="<|endoftext|>")
        assert TextTokenizer.load(folder).eos_token_ids == (0,)


@pytest.mark.parametrize("listed", [False, True])
def test_named_and_extra_tokens_are_read_as_transformers_does(listed: bool, tmp_path: Path, oracles: Any) -> None:
    decoder = {"added_tokens_decoder": {"1": {"content": "<|im_start|>", "special": True, "normalized": False}}}
    folder = byte_level_folder(
        tmp_path,
        additional_special_tokens=["<think>", "<new>"],
        eos_token="<|im_end|>",
        unk_token="Paris",
        **(decoder if listed else {"pad_token": "</think>"}),
    )
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    tokenizer, oracle = TextTokenizer.load(folder), oracles(folder)
    assert tokenizer.eos_token_id == oracle.eos_token_id == (2 if listed else 0)
    ids = tokenizer.encode("a<think>b<new>c</think>Paris")
    assert ids == oracle("a<think>b<new>c</think>Paris")["input_ids"]
    assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path)
    state = json.loads((folder / "tokenizer.json").read_text())
    state["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    state["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "tokenizer.json").write_text(json.dumps(state))
    text = "The capital of France is Paris and more and more"
    assert TextTokenizer.load(cut).encode(text) == TextTokenizer.load(folder).encode(text)


def test_invalid_and_oversized_text_is_refused(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = TextTokenizer.load(tokenizer_folders["byte-level"], max_bytes=10)
    for encode in (tokenizer.encode, tokenizer.encode_continuation):
        with pytest.raises(Error) as caught:
            encode("a\ud800", field="prompt")
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert caught.value.violations[0].field == "prompt"
        with pytest.raises(Error) as caught:
            encode("é" * 6, field="prompt")
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        assert "12 bytes" in caught.value.violations[0].description
        assert encode("é" * 5)


def test_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"tokenizer\.json cannot be used: it is missing") as caught:
        TextTokenizer.load(tmp_path)
    assert caught.value.code is Code.FAILED_PRECONDITION
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(Error, match=r"tokenizer\.json cannot be used"):
        TextTokenizer.load(tmp_path)
    good = byte_level_folder(tmp_path / "good")
    for name, text in [("tokenizer_config.json", "[1]"), ("config.json", "{"), ("generation_config.json", "\udcff")]:
        copy = tmp_path / f"copy-{name}"
        shutil.copytree(good, copy)
        (copy / name).write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(Error, match=name):
            TextTokenizer.load(copy)


def test_unknown_ids_decode_to_nothing(smollm: TextTokenizer) -> None:
    (hi,) = smollm.encode("hi")
    assert smollm.decode([hi, smollm.vocab_size, smollm.vocab_size + 5, -1], skip_special_tokens=False) == "hi"
    assert smollm.token_bytes(smollm.vocab_size + 5) == b""


def test_token_bytes_join_to_the_text(tokenizer_folders: dict[str, Path]) -> None:
    for kind in ("smollm", "byte-level", "sentencepiece"):
        tokenizer = TextTokenizer.load(tokenizer_folders[kind])
        text = "Paris 東京 🙂"
        joined = b"".join(tokenizer.token_bytes(id) for id in tokenizer.encode_continuation(text))
        assert joined == text.encode()


def test_the_front_loads_no_model_library(default_base: Path) -> None:
    code = (
        "import sys; from loramux_server.text import TextTokenizer; import loramux_server.data.dataset\n"
        f"TextTokenizer.load({str(default_base)!r}).encode_chat([{{'role': 'user', 'content': 'hi'}}])\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
