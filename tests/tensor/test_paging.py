"""The page size is found by trying a kernel. Kernels here are plain code with a kernel's faults."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from loramux_server.model import kv
from loramux_server.model import page_size as paging
from loramux_server.model.attention import causal_mask, dense_attention
from loramux_server.model.page_size import find_page_size
from tests.engine import Engine, command, prompts

CPU = torch.device("cpu")


def gathered(q, keys, values, starts, used, table, longest_q, longest_k, *, scale, window) -> Tensor:  # type: ignore[no-untyped-def]
    """The kernel's contract in plain code."""
    out = torch.empty_like(q)
    for i in range(len(used)):
        rows = slice(int(starts[i]), int(starts[i + 1]))
        now, end = rows.stop - rows.start, int(used[i])
        ks, vs = (x[table[i].long()].flatten(0, 1)[:end].transpose(0, 1)[None] for x in (keys, values))
        mask = causal_mask(now, end - now, window, q.device)
        part = dense_attention(q[rows].transpose(0, 1)[None], ks, vs, scale=scale, softcap=None, mask=mask)
        out[rows] = part[0].transpose(0, 1)
    return out


def only_pages_of_256(q, keys, *rest, **options) -> Tensor:  # type: ignore[no-untyped-def]
    if keys.shape[1] % 256:
        raise RuntimeError("Paged KV cache block size must be divisible by 256")
    return gathered(q, keys, *rest, **options)


def forgets_the_window(*given, window, **options) -> Tensor:  # type: ignore[no-untyped-def]
    return gathered(*given, window=None, **options)


@pytest.mark.parametrize(
    ("kernel", "page_size"), [(gathered, 16), (only_pages_of_256, 256), (forgets_the_window, None)]
)
def test_find_page_size(kernel, page_size) -> None:  # type: ignore[no-untyped-def]
    assert find_page_size(4, 2, 32, CPU, torch.bfloat16, kernel) == page_size


def test_no_kernel_for_float32() -> None:
    assert find_page_size(4, 2, 32, CPU, torch.float32, gathered) is None


def test_torch_has_no_paged_kernel_here() -> None:
    """On a host torch's own kernel raises, and that is an answer too."""
    assert find_page_size(4, 2, 32, CPU, torch.bfloat16) is None


@pytest.mark.parametrize("arch", ["llama", "mistral"])
def test_the_kernel_road_gives_the_same_tokens(
    arch: str,
    tiny_base,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    """Spans, page tables and lengths as a GPU's kernel would get them, through a whole engine."""
    plain = Engine(tiny_base(arch), tmp_path / "plain", max_batch_tokens=24)
    texts = prompts(5, seed=3)
    expected = [plain.generate(p, 10) for p in texts]
    plain.close()
    monkeypatch.setattr(kv, "paged_kernel", gathered)
    monkeypatch.setattr(paging, "paged_kernel", gathered)
    engine = Engine(tiny_base(arch), tmp_path / "kernel", max_batch_tokens=24)
    shape = engine.runner.kv.shape
    object.__setattr__(shape, "kernel", True)
    engine.run(*(command(f"k{i}", p, 10) for i, p in enumerate(texts)))
    assert [engine.tokens(f"k{i}") for i in range(5)] == expected
    engine.close()
