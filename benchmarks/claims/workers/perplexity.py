"""The loss of a base on texts, by windows of equal length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from loramux_server.text import TextTokenizer

from . import loop


def run(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """``texts`` by name, ``weights``, ``dtype``, ``window`` and the most ``windows`` of a text: their mean losses."""
    tokenizer = TextTokenizer.load(settings["nf4"])
    model = loop.load_model(Path(settings["weights"]), getattr(torch, settings["dtype"])).eval()
    size = settings["window"]
    for name, text in settings["texts"].items():
        ids = torch.tensor(tokenizer.encode(text))
        starts = range(0, len(ids) - size + 1, size)[: settings["windows"]]
        losses = []
        for start in starts:
            window = ids[start : start + size]
            with torch.inference_mode():
                logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
            losses.append(float(cross_entropy(logits.float(), window[1:])))
        yield {"name": name, "tokens": (size - 1) * len(losses), "losses": losses}
