"""Sampling against a plain numpy reference: which tokens stay, with what probability, and which one a number picks."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from loramux_server.core.types import SamplingParams, Stack
from loramux_server.engine.execution import sampler
from loramux_server.engine.execution.sampler import SampledToken, sample
from loramux_server.engine.scheduling.sequence import Sequence
from tests.examples import examples, few

EOS = (2,)


def sequence(seed: int = 0, prompt: Seq[int] = (3, 4), output: Seq[int] = (), **sampling: object) -> Sequence:
    params = SamplingParams(**sampling)  # type: ignore[arg-type]
    return Sequence("s", [*prompt, *output], len(prompt), Stack(), params, seed, tenant="default")


def one(row: Tensor, seq: Sequence) -> SampledToken:
    return sample(row[None], [seq], EOS)[0]


def rows(count: int, vocabulary: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(seed))


def reference(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Probabilities [vocabulary] after temperature, top_k, top_p, min_p, each by its definition on sorted values."""
    scaled = logits.astype(np.float64) / params.temperature
    order = np.argsort(-scaled, kind="stable")
    p = np.exp(scaled[order] - scaled[order[0]])
    if 0 < params.top_k < len(p):
        p[params.top_k :] = 0
    p /= p.sum()
    keep = np.cumsum(p) - p < params.top_p
    keep &= p >= params.min_p * p[0]
    p = np.where(keep, p, 0)
    found = np.zeros(len(p))
    found[order] = p / p.sum()
    return found


def picked(logits: np.ndarray, params: SamplingParams, point: float, *, sort: bool) -> int:
    """Token of a uniform number: by the cumulative mass in order of id, or from the likeliest down."""
    p = reference(logits, params)
    order = np.argsort(-logits, kind="stable") if sort else np.arange(len(p))
    return int(order[np.searchsorted(np.cumsum(p[order]), point, side="right")])


settings_of = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.1, 0.7, 1.0, 2.5]),
        "top_k": st.sampled_from([0, 1, 3, 40, 1500, 10**6]),
        "top_p": st.sampled_from([1.0, 0.95, 0.5, 1e-6]),
        "min_p": st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    }
)


@given(settings_of, st.sampled_from([5, 300, 3000]), st.integers(0, 10**6), st.sampled_from([0.01, 1.0, 4.0]))
@examples(80)
def test_the_token_is_the_one_that_the_number_picks(
    params: dict[str, float], vocabulary: int, seed: int, spread: float
) -> None:
    """Inverse transform, exactly: any difference in the kept set or its mass moves some token."""
    logits = rows(4, vocabulary, seed, spread)
    draw = np.random.default_rng(seed)
    points = draw.random(4)
    seqs = [sequence(i, **params) for i in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "_uniform", lambda seq: points[seq.seed])
        chosen = [c.token for c in sample(logits, seqs, EOS)]
    for row, seq, token, point in zip(logits.numpy(), seqs, chosen, points, strict=True):
        cut = sampler._truncates(seq, vocabulary)
        if token != picked(row, seq.sampling, point, sort=cut):
            # Only where the number falls on a border to within rounding.
            near = {picked(row, seq.sampling, point + e, sort=cut) for e in (-1e-6, 1e-6) if 0 <= point + e < 1}
            assert token in near


@pytest.mark.parametrize(
    "params",
    few(
        [
            {"top_k": 6, "top_p": 0.9, "min_p": 0.01},
            {},
            {"temperature": 0.5},
            {"top_k": 3},
            {"top_p": 0.8},
            {"min_p": 0.2},
        ]
    ),
)
def test_frequencies(params: dict[str, float]) -> None:
    """Chi-square of 6,000 draws with seeds 0..5999 against the reference."""
    logits = rows(1, 12, 3, 1.5)
    chosen = SamplingParams(temperature=params.pop("temperature", 1.0), **params)  # type: ignore[arg-type]
    expected = reference(logits[0].numpy(), chosen)
    count = 6000
    seqs = [sequence(i, temperature=chosen.temperature, **params) for i in range(count)]
    counts = np.bincount([c.token for c in sample(logits.expand(count, -1), seqs, EOS)], minlength=12)  # type: ignore[misc]
    inside = expected > 0
    assert not counts[~inside].any()
    wanted = expected[inside] * count
    chi2 = ((counts[inside] - wanted) ** 2 / wanted).sum()
    freedom = int(inside.sum()) - 1
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5 + 5


@pytest.mark.slow
def test_beyond_the_candidates_the_whole_row_is_looked_at() -> None:
    """A flat row: top_p 0.9 of 5,000 equal tokens keeps 4,500."""
    vocabulary = 5000
    logits = torch.linspace(1e-3, 0, vocabulary)[None]
    seqs = [sequence(i, temperature=1.0, top_p=0.9) for i in range(1500)]
    chosen = np.array([c.token for c in sample(logits.expand(1500, -1), seqs, EOS)])
    assert chosen.max() < 4502
    assert (chosen > sampler.CANDIDATES).mean() == pytest.approx(1 - 1024 / 4500, abs=0.05)


def test_top_p_is_of_what_top_k_left_even_when_that_is_more_than_the_candidates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1,100 of 2,000 tokens by top_k, then half of their mass, not half of everybody's."""
    logits = torch.linspace(2.0, 0, 2000)
    params = {"temperature": 1.0, "top_k": 1100, "top_p": 0.5}
    expected = reference(logits.numpy(), SamplingParams(**params))  # type: ignore[arg-type]
    monkeypatch.setattr(sampler, "_uniform", lambda seq: 1 - 1e-12)
    assert one(logits, sequence(**params)).token == int(np.flatnonzero(expected)[-1])


def test_greedy_takes_the_best_and_the_first_of_equals() -> None:
    logits = rows(3, 50)
    logits[2, [7, 30]] = 99.0
    chosen = [c.token for c in sample(logits, [sequence() for _ in range(3)], EOS)]
    assert chosen == [*logits[:2].argmax(-1).tolist(), 7]


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = rows(1, 50)[0]
    assert one(logits, sequence(temperature=temperature)).token == int(logits.argmax())
    assert one(logits, sequence(temperature=temperature, top_p=0.9)).token == int(logits.argmax())


# -- random streams ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, -1, -(2**63), 2**63 - 1])
def test_every_seed_is_a_stream_of_its_own(seed: int) -> None:
    numbers = [sampler._uniform(sequence(seed, output=[5] * n)) for n in range(50)]
    assert numbers == [sampler._uniform(sequence(seed, output=[9] * n)) for n in range(50)]
    assert len({*numbers}) == 50
    assert 0.2 < np.mean(numbers) < 0.8
    for other in (seed ^ 2, -seed - (seed == 0)):
        if abs(other) < 2**63:
            assert not {*numbers} & {sampler._uniform(sequence(other, output=[5] * n)) for n in range(50)}


@given(st.lists(settings_of, min_size=2, max_size=6), st.integers(0, 1000))
@examples(30)
def test_a_row_does_not_depend_on_its_mates(mates: list[dict[str, float]], seed: int) -> None:
    logits = rows(len(mates), 2000, seed)
    seqs = [sequence(seed + i, output=range(i), **m) for i, m in enumerate(mates)]
    together = [c.token for c in sample(logits, seqs, EOS)]
    assert together == [one(row, seq).token for row, seq in zip(logits, seqs, strict=True)]
    backwards = [c.token for c in sample(logits.flip(0), seqs[::-1], EOS)]
    assert backwards == together[::-1]


# -- what changes logits ----------------------------------------------------------------------------------------------


def test_bias_bans_and_forces() -> None:
    logits = rows(1, 30)[0]
    best, second = logits.topk(2).indices.tolist()
    assert one(logits, sequence(logit_bias=((best, -100.0),))).token == second
    assert one(logits, sequence(logit_bias=((11, 100.0),))).token == 11
    before = logits.clone()
    one(logits, sequence(logit_bias=((11, 100.0),)))
    assert torch.equal(logits, before), "the raw logits stay as they were"


def test_no_end_before_the_minimum() -> None:
    logits = torch.zeros(10)
    logits[[2, 7, 5]] = torch.tensor([9.0, 8.0, 1.0])
    settings = {"min_tokens": 2, "stop_token_ids": (7,)}
    assert one(logits, sequence(output=[4], **settings)).token == 5
    assert one(logits, sequence(output=[4, 4], **settings)).token == 2
    assert sample(logits[None], [sequence(min_tokens=2)], ())[0].token == 2


def test_repetition_penalty_as_in_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = rows(6, 40, 5)
    for i, row in enumerate(logits):
        seq = sequence(prompt=(1, 2, 3), output=[int(row.argmax()), 9], repetition_penalty=1.0 + i)
        expected = RepetitionPenaltyLogitsProcessor(1.0 + i)(torch.tensor([seq.tokens]), row[None].clone())
        assert one(row, seq).token == int(expected.argmax())


def test_presence_and_frequency_penalties_count_output_alone() -> None:
    logits = torch.tensor([0.0, 1.0, 1.5, 2.0])
    seen = {"prompt": (3,), "output": (2, 2, 1)}
    assert one(logits, sequence(**seen, presence_penalty=0.6)).token == 3  # type: ignore[arg-type]
    assert one(logits, sequence(prompt=(0,), output=(3, 3), presence_penalty=0.4)).token == 3
    assert one(logits, sequence(prompt=(0,), output=(3, 3), presence_penalty=0.6)).token == 2
    assert one(logits, sequence(prompt=(0,), output=(3, 3), frequency_penalty=0.2)).token == 3
    assert one(logits, sequence(prompt=(0,), output=(3, 3), frequency_penalty=0.3)).token == 2
    assert one(logits, sequence(prompt=(0, 3, 3), presence_penalty=2.0, frequency_penalty=2.0)).token == 3


def test_penalties_reach_random_sampling_too() -> None:
    logits = torch.zeros(5)
    for seed in range(20):
        seq = sequence(seed, temperature=1.0, logit_bias=tuple((t, -1000.0) for t in (0, 1, 2, 4)))
        assert one(logits, seq).token == 3


# -- log-probabilities and broken rows --------------------------------------------------------------------------------


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = rows(3, 30, 8)
    seqs = [sequence(logprobs=2, logit_bias=((11, 100.0),)), sequence(), sequence(logprobs=0, temperature=1.0)]
    biased, silent, random = sample(logits, seqs, EOS)
    expected = logits.log_softmax(-1)
    assert biased.logprob is not None
    assert (biased.token, biased.logprob.token_id) == (11, 11)
    assert biased.logprob.logprob == pytest.approx(float(expected[0, 11]), abs=1e-5)
    best = expected[0].topk(2)
    assert [t for t, _ in biased.logprob.top] == best.indices.tolist()
    assert [p for _, p in biased.logprob.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert silent.logprob is None
    assert random.logprob is not None
    assert random.logprob.top == ()
    assert random.logprob.logprob == pytest.approx(float(expected[2, random.token]), abs=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", [0, 29, slice(None)])
def test_a_row_that_is_not_finite_stands_alone(value: float, where: int | slice) -> None:
    logits = rows(5, 30)
    seqs = [sequence(i, temperature=float(i % 2), logprobs=1, repetition_penalty=1.1) for i in range(5)]
    whole = sample(logits, seqs, EOS)
    broken = logits.clone()
    broken[2, where] = value
    got = sample(broken, seqs, EOS)
    assert got[2] == SampledToken(None)
    assert [c for i, c in enumerate(got) if i != 2] == [c for i, c in enumerate(whole) if i != 2]


def test_a_row_of_minus_infinity_is_not_finite_and_some_of_it_is_fine() -> None:
    logits = rows(2, 30)
    logits[0] = -torch.inf
    logits[1, 10:] = -torch.inf
    first, second = sample(logits, [sequence(temperature=1.0), sequence(temperature=1.0)], EOS)
    assert first.token is None
    assert second.token is not None
    assert second.token < 10


def test_no_rows() -> None:
    assert sample(torch.zeros(0, 30), [], EOS) == []


GOLDEN = {
    "plain": ({"temperature": 0.9}, [3160, 3257, 1623, 3880, 3050, 66, 2183, 1261, 467, 971, 2799, 1324]),
    "top_k": (
        {"temperature": 0.9, "top_k": 40},
        [3160, 305, 807, 3119, 3559, 3681, 1481, 1261, 1389, 2232, 2892, 2491],
    ),
    "top_p": (
        {"temperature": 1.1, "top_p": 0.9},
        [2318, 346, 1623, 2020, 2550, 3681, 2531, 294, 1891, 1492, 1047, 2329],
    ),
    "min_p": ({"temperature": 1.3, "min_p": 0.02}, [765, 66, 3039, 3310, 3134, 3681, 717, 294, 1891, 108, 2978, 339]),
    "penalties": (
        {"temperature": 0.8, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.1},
        [2943, 3257, 1623, 3880, 2853, 66, 1936, 1261, 522, 971, 2771, 1479],
    ),
}
"""What seeds gave when they were first recorded: an answer that somebody keeps a seed for must come again."""


@pytest.mark.parametrize("name", list(GOLDEN))
def test_a_seed_gives_what_it_always_gave(name: str) -> None:
    settings, expected = GOLDEN[name]
    logits = rows(12, 4000, seed=17)
    seqs = [sequence(1000 + i, output=[5, 6, 5, *range(i)], **settings) for i in range(12)]
    assert [found.token for found in sample(logits, seqs, EOS)] == expected


def test_settings_of_every_kind_meet_in_one_batch() -> None:
    """Each row is what it is alone: masks, penalties, ends that are banned, and every way to draw."""
    logits = rows(8, 4000, seed=3)
    allowed = np.zeros(4000, dtype=bool)
    allowed[[7, 9, 2]] = True
    masks = {i: np.packbits(allowed, bitorder="little").tobytes() for i in (1, 4, 6)}
    seqs = [
        sequence(1),
        sequence(2, temperature=1.0),
        sequence(3, temperature=1.0, top_p=0.5, output=[5, 5, 9], frequency_penalty=0.5),
        sequence(4, temperature=1.0, top_k=2000, logit_bias=((3, 5.0), (4, -100.0))),
        sequence(5, min_tokens=4, repetition_penalty=1.5),
        sequence(6, temperature=0.7, min_p=0.1, logprobs=2),
        sequence(7, temperature=2.0, top_k=3, logprobs=0),
        sequence(8, temperature=1e-3, top_p=0.99, presence_penalty=1.0, output=[8]),
    ]
    together = sample(logits, seqs, EOS, masks)
    for i, seq in enumerate(seqs):
        alone = sample(logits[i : i + 1], [seq], EOS, {0: masks[i]} if i in masks else {})[0]
        assert alone.token == together[i].token
        assert (alone.logprob is None) == (together[i].logprob is None)
        if i in masks:
            assert alone.token in (7, 9, 2)
    assert len(together[5].logprob.top) == 2  # type: ignore[union-attr]
    assert together[6].logprob.top == ()  # type: ignore[union-attr]
