"""Small tokenizers of each kind, written as folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

CORPUS = (
    "The capital of France is Paris. The office opens at nine and closes at five, every day of the week.",
    "Where is the shop? The shop is in the harbour street, number 14. 1234567890 + 22 = 33",
    "äöüß naïve café 東京都 日本語 中文字符 🙂 👩‍👩‍👧 🇫🇷 END STOP end stop stop.\n\n\tdef f(x):\n    return x",
    "system user assistant tool model think answer question",
)
CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
)
THINKING = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Added tokens that are not special: text in an answer, control in a template."""


def byte_level_folder(
    folder: Path, template: str | None = None, *, size: int = 700, bos: bool = False, **config: Any
) -> Path:
    """Byte-level BPE as in GPT-2, Llama 3, Qwen and SmolLM2. ``config`` goes to tokenizer_config.json."""
    tokenizer = Tokenizer(models.BPE())
    pattern = Regex(r"'s|\p{L}+|\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in CONTROL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in THINKING])
    if bos:
        start = config["bos_token"]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A $B", special_tokens=[(start, tokenizer.token_to_id(start))]
        )
    return _write(tokenizer, folder, template, config)


def sentencepiece_folder(
    folder: Path, template: str | None = None, *, legacy: bool = False, bos: bool = True, **config: Any
) -> Path:
    """BPE over ▁-words with byte fallback as in Llama 2, Mistral and Gemma; ``legacy``: a space before every piece."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<s>", "</s>", *CONTROL]
    trained.train_from_iterator(
        CORPUS[:2], trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    )
    state = json.loads(trained.to_str())["model"]
    vocab: dict[str, int] = state["vocab"]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    merges = [tuple(merge) for merge in state["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    if bos:
        tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
        )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _write(tokenizer, folder, template, names | config)


def _write(tokenizer: Tokenizer, folder: Path, template: str | None, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    # The class that reads tokenizer.json as it is; clean-up off, as every chat model has it.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def turns(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    """User and assistant taking turns, after a system turn if there is one."""
    start: Sequence[dict[str, Any]] = [{"role": "system", "content": system}] if system is not None else []
    return [
        *start,
        *({"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(contents)),
    ]
