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


def flash(
    q, keys, values, starts, _, longest_q, longest_k, *, scale, window_size, enable_gqa, seqused_k, block_table
) -> Tensor:  # type: ignore[no-untyped-def]
    """FlashAttention 2 over pages in plain code: its masks, and what it asks for where it packs grouped heads."""
    assert enable_gqa == (q.shape[1] != keys.shape[2])
    left, right = window_size
    count = len(seqused_k)
    if longest_q == 1 and enable_gqa and (left, right) == (-1, -1):  # packed: it looks at no lengths of queries
        assert q.shape[0] == count
        starts = torch.arange(count + 1)
    out = torch.empty_like(q)
    for i in range(count):
        rows, end = slice(int(starts[i]), int(starts[i + 1])), int(seqused_k[i])
        assert rows.stop - rows.start <= longest_q
        assert end <= longest_k
        ks, vs = (x[block_table[i].long()].flatten(0, 1)[:end].transpose(0, 1)[None] for x in (keys, values))
        # Aligned to the right: the last query stands at the last key.
        distance = torch.arange(end - (rows.stop - rows.start), end)[:, None] - torch.arange(end)
        mask = ((distance <= left) | (left < 0)) & ((distance >= -right) | (right < 0))
        part = dense_attention(q[rows].transpose(0, 1)[None], ks, vs, scale=scale, softcap=None, mask=mask)
        out[rows] = part[0].transpose(0, 1)
    return out


@pytest.mark.parametrize("heads", [2, 8])
def test_flash_attention_is_asked_for_what_it_means(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode rows without a mask, which lets it pack grouped heads; with a window or a chunk as they are."""
    asked = set()

    def noted(*given, window_size, **options) -> Tensor:  # type: ignore[no-untyped-def]
        asked.add((given[5] == 1, window_size))
        return flash(*given, window_size=window_size, **options)

    monkeypatch.setattr(paging, "varlen_attn", noted)
    assert find_page_size(heads, 2, 32, CPU, torch.bfloat16) == 16
    assert asked == {
        (True, (-1, -1)),
        (True, (paging.WINDOW - 1, 0)),
        (False, (-1, 0)),
        (False, (paging.WINDOW - 1, 0)),
    }


def test_a_kernel_that_is_wrong_for_decode_rows_alone_is_not_taken() -> None:
    def wrong(*given, **options) -> Tensor:  # type: ignore[no-untyped-def]
        return gathered(*given, **options) * (1.2 if given[6] == 1 else 1.0)

    assert find_page_size(4, 2, 32, CPU, torch.bfloat16, wrong) is None


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
