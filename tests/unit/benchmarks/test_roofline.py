"""The bound, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.roofline import NF4_BYTES, Load, Rates, Shape, least_seconds, step_seconds

SHAPE = Shape(linears=((10, 20), (20, 10)), hidden=10, vocab=50, layers=2, query_width=8, kv_width=4)
BASE = Load(requests=4, concurrency=1, prompt_tokens=6, new_tokens=8, distinct=0, depth=0, rank=3)
SLOW_MEMORY = Rates(bandwidth=1.0, operations=1e12)
SLOW_CORES = Rates(bandwidth=1e12, operations=1.0)


def test_weights_are_counted() -> None:
    assert (SHAPE.linear_weights, SHAPE.head_weights) == (400, 500)
    assert SHAPE.adapter_weights(3) == 3 * (30 + 30)


def test_a_step_reads_weights_adapters_and_keys_and_values() -> None:
    load = replace(BASE, concurrency=2, distinct=2, depth=1)
    kv = 2 * 10 * (2 * 2 * 4)  # two rows of 6 + 8/2 tokens, keys and values of 4 in each of two layers
    assert step_seconds(SHAPE, load, SLOW_MEMORY, 2) == pytest.approx(2 * (900 + 2 * 180 + kv))
    assert step_seconds(SHAPE, load, SLOW_MEMORY, 2, NF4_BYTES) == pytest.approx(NF4_BYTES * 400 + 2 * (500 + 360 + kv))


def test_a_step_multiplies_each_row_by_the_base_and_its_own_stack() -> None:
    load = replace(BASE, concurrency=2, distinct=16, depth=2)
    attention = 4 * 2 * 10 * 2 * 8
    assert step_seconds(SHAPE, load, SLOW_CORES, 2) == pytest.approx(2 * 2 * (900 + 2 * 180) + attention)


def test_a_workload_is_a_prefill_and_the_steps_after_it_for_each_wave() -> None:
    step = step_seconds(SHAPE, BASE, SLOW_CORES, 2)
    prefill = 2 * 6 * 400 + 2 * 500
    assert least_seconds(SHAPE, BASE, SLOW_CORES, 2) == pytest.approx(4 * (prefill + 7 * step))
    # Prefills of few tokens are bound by reading the weights once.
    waves = least_seconds(SHAPE, replace(BASE, concurrency=4), SLOW_MEMORY, 2)
    step = step_seconds(SHAPE, replace(BASE, concurrency=4), SLOW_MEMORY, 2)
    assert waves == pytest.approx(2 * 900 + 7 * step)


def test_the_default_base_takes_what_its_size_says() -> None:
    """135 million parameters in 16 bits at 20 GB/s: 13 ms; 16 adapters of rank 16 bring 157 MB more."""
    layer = ((576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576))
    smol = Shape(layer * 30, 576, 49152, 30, 576, 192)
    rates = Rates(20e9, 350e9)
    load = Load(16, 16, 0, 0, 0, 0, 16)
    assert step_seconds(smol, load, rates, 2) == pytest.approx(269e6 / 20e9, rel=0.01)
    assert step_seconds(smol, replace(load, distinct=16, depth=1), rates, 2) == pytest.approx(21e-3, rel=0.03)


def test_of_two_trials_the_better_counts() -> None:
    assert Rates(1.0, 5.0).best(Rates(2.0, 4.0)) == Rates(2.0, 5.0)
