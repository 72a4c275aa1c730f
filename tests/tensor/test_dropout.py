"""Dropout masks from numbers: as random as a generator's, and the same wherever and however often they are made."""

from __future__ import annotations

import pytest
import torch

from loramux_server.lora.dropout import factors, token_keys

CPU = torch.device("cpu")
SEEDS = [(300, 7), (1, 8), (200, 1 << 47), (99, 9)]
WIDTH = 577
GOLDEN = [-906084347102765743, 2454886589211414944]
GOLDEN_KEPT = [1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0]


def made(dropout: float, stream: int = 3) -> torch.Tensor:
    return factors(token_keys(SEEDS, CPU), stream, WIDTH, dropout)


@pytest.mark.parametrize("dropout", [0.05, 0.1, 0.5, 0.9])
def test_so_many_values_are_dropped_and_the_mean_stays(dropout: float) -> None:
    found = made(dropout)
    assert found.shape == (600, WIDTH)
    assert found.unique().tolist() == pytest.approx([0.0, 1 / (1 - dropout)])
    share = float((found == 0).float().mean())
    assert share == pytest.approx(dropout, abs=5 * (dropout * (1 - dropout) / found.numel()) ** 0.5)
    for dim, count in ((0, 600), (1, WIDTH)):  # no token and no column is spared
        shares = (found == 0).float().mean(dim)
        assert float((shares - dropout).abs().max()) < 6 * (dropout * (1 - dropout) / count) ** 0.5


def test_neighbours_are_independent() -> None:
    kept = (made(0.5) != 0).double()
    others = [(made(0.5, stream) != 0).double() for stream in (4, 5, 1 << 40)]
    pairs = [
        (kept[1:], kept[:-1]),
        *((kept[:, n:], kept[:, :-n]) for n in (1, 2, 3, 4, 8)),
        *((kept, o) for o in others),
    ]
    for a, b in pairs:
        correlation = 4 * float(((a - 0.5) * (b - 0.5)).mean())
        assert abs(correlation) < 5 / a.numel() ** 0.5


def test_a_sequence_has_its_masks_wherever_it_lies() -> None:
    whole = made(0.3)
    alone = factors(token_keys([SEEDS[2]], CPU), 3, WIDTH, 0.3)
    assert torch.equal(alone, whole[301:501])
    shuffled = factors(token_keys([SEEDS[3], SEEDS[2]], CPU), 3, WIDTH, 0.3)
    assert torch.equal(shuffled[99:], alone)
    assert torch.equal(made(0.3), whole)


def test_values_of_today_are_those_of_tomorrow() -> None:
    """A job that is resumed by another version drops the same values."""
    assert token_keys([(2, 12345)], CPU).tolist() == GOLDEN
    assert (factors(token_keys([(1, 12345)], CPU), 1, 16, 0.5) != 0).int().tolist() == [GOLDEN_KEPT]
