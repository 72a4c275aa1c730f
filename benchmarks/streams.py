"""Streams that never pause: as one ends the next begins, until the time is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import count

from loramux import AsyncClient

from .samples import Figures, Sample, Stopwatch, summarise
from .workloads import prompt


def first_lengths(places: int, tokens: int) -> list[int]:
    """Tokens of each place's first request: spread evenly, the last one's as long as all later ones."""
    return [max(1, tokens * (place + 1) // places) for place in range(places)]


def kept(samples: list[Sample]) -> list[Sample]:
    """Those that had a first token before the time was over."""
    return [sample for sample in samples if sample.tokens]


async def keep_streaming(
    client: AsyncClient, places: int, tokens: int, seconds: float, mark: str
) -> tuple[list[Sample], float]:
    """Samples of ``places`` streams at once for ``seconds``, and the seconds that it took.

    Each request asks the base for ``tokens`` new tokens; the first ones for fewer, each for another number, so that
    the streams do not all end together, which would leave the server without requests for a moment. One that is under
    way when the time is over is broken off; what came of it before counts. No two requests begin alike.
    """
    samples: list[Sample] = []
    numbers = count()
    begin = time.perf_counter()
    first = first_lengths(places, tokens)
    await asyncio.gather(*(_place(client, numbers, (n, tokens), begin + seconds, mark, samples) for n in first))
    return samples, time.perf_counter() - begin


async def _place(
    client: AsyncClient,
    numbers: Iterator[int],
    lengths: tuple[int, int],
    until: float,
    mark: str,
    samples: list[Sample],
) -> None:
    """``lengths`` in tokens, of the first request and of those after it."""
    length, later = lengths
    while (left := until - time.perf_counter()) > 0:
        watch = Stopwatch()
        stream = client.stream(prompt(next(numbers), mark), max_tokens=length, temperature=0.0, ignore_eos=True)
        try:
            async with asyncio.timeout(left), stream:
                async for chunk in stream:
                    watch.tokens(chunk.token_ids)
        except TimeoutError:
            pass  # the time is over
        samples.append(watch.sample())
        length = later


def pooled(parts: list[tuple[list[Sample], float]]) -> Figures:
    """Figures of several stretches together. Raises ValueError when nothing came."""
    return summarise(kept([s for samples, _ in parts for s in samples]), sum(seconds for _, seconds in parts))
