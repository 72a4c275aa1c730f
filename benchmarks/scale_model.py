"""A cluster of replicas as a discrete-event simulation: requests, steps, adapters in memory, prefixes, routing.

Each replica works in steps, as the engine does: a step admits waiting sequences within its budgets, computes their
prompts and one token of every running sequence, and takes as long as ``Speed`` says. Reports reach the router every
half second, and it ranks replicas with the server's own ``Affinity``. Nothing depends on the machine or the clock.
"""

from __future__ import annotations

import heapq
import random
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from loramux_server.replicas.routing.affinity import Affinity, Load, Work
from loramux_server.replicas.routing.fleet import REPORT_SECONDS
from loramux_server.replicas.routing.prefixes import BLOCK_TOKENS, Prefixes


@dataclass(frozen=True, slots=True)
class Speed:
    """How long things take on one replica, in seconds. Measured, or taken from a table of a device."""

    step: float
    """A step, whatever it holds."""
    sequence: float
    """More for each sequence that decodes in it."""
    prompt_token: float
    """More for each token of a prompt."""
    load: float
    """Bringing an adapter version that is in no memory there; one at a time."""


@dataclass(frozen=True, slots=True)
class Size:
    """What one replica holds."""

    adapters: int
    """Adapter versions in memory."""
    running: int
    """Sequences in a step."""
    batch_tokens: int
    """Tokens in a step."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a trace. Times are seconds since its begin."""

    at: float
    adapters: frozenset[str]
    prompt: int
    tokens: int
    """New tokens: all of them are made."""
    prefix: tuple[bytes, ...] = ()
    """The chain of the prompt's blocks that other prompts share."""


@dataclass(slots=True)
class Answer:
    """What became of a request. Times are seconds since the trace's begin; 0: not yet."""

    ask: Ask
    at: float = 0.0
    """When it was asked."""
    first: float = 0.0
    end: float = 0.0
    missing: int = 0
    """Adapters of its stack that were in no memory of its replica when it came."""
    known: int = 0
    """Tokens of its prompt that were not computed again."""


Route = Callable[[Affinity, Work, Mapping[str, Load], float], str]
"""Chooses a replica for work, knowing what replicas reported last and what was sent since."""


def by_affinity(policy: Affinity, work: Work, loads: Mapping[str, Load], now: float) -> str:
    """As the server does."""
    return policy.rank(work, loads, now)[0]


def by_queue(policy: Affinity, work: Work, loads: Mapping[str, Load], now: float) -> str:
    """Where least is queued, whatever is resident."""
    return policy.rank(replace(work, adapters=frozenset(), prefix=()), loads, now)[0]


def by_hash(policy: Affinity, work: Work, loads: Mapping[str, Load], now: float) -> str:
    """Each stack always to the same one, whatever is queued there."""
    return _hashed("\0".join(sorted(work.adapters)) or work.id, sorted(loads))


def by_chance(policy: Affinity, work: Work, loads: Mapping[str, Load], now: float) -> str:
    """Anywhere: by a hash of the request itself, so that a run is repeatable."""
    return _hashed(work.id, sorted(loads))


ROUTES: Mapping[str, Route] = {"affinity": by_affinity, "queue": by_queue, "hash": by_hash, "chance": by_chance}


def _hashed(text: str, replicas: Sequence[str]) -> str:
    return replicas[zlib.crc32(text.encode()) % len(replicas)]


class _Replica:
    """Sequences that wait and run, and what is in memory."""

    def __init__(self, id: str, speed: Speed, size: Size) -> None:
        self.id, self._speed, self._size = id, speed, size
        self._resident: OrderedDict[str, None] = OrderedDict()
        self._using: Counter[str] = Counter()
        self._prefixes = Prefixes(kept_seconds=float("inf"))
        self._loaded_at: dict[str, float] = {}
        self._loader_free = 0.0
        self._waiting: deque[tuple[Answer, float]] = deque()
        self._decoding: list[tuple[int, int, Answer]] = []
        self.steps, self._order = 0, count()
        self.queued: dict[int, int] = {}
        """Tokens of each request that is not over."""
        self.ends_at: float | None = None
        """Of the step that is under way."""
        self.loads = 0

    def warm(self, adapters: Iterable[str]) -> None:
        """Have these in memory, the last one used last."""
        for adapter in adapters:
            self._touch(adapter)

    def report(self) -> Load:
        return Load(frozenset(self._resident), sum(self.queued.values()))

    def take(self, answer: Answer, now: float) -> float:
        """A request comes; gives when its adapters are all in memory."""
        ready = now
        for adapter in sorted(answer.ask.adapters):
            if adapter not in self._resident:
                answer.missing += 1
                self.loads += 1
                self._loader_free = max(self._loader_free, now) + self._speed.load
                self._loaded_at[adapter] = self._loader_free
            ready = max(ready, self._loaded_at.get(adapter, now))
            self._using[adapter] += 1
            self._touch(adapter)
        answer.known = min(self._prefixes.known_tokens(answer.ask.prefix, now), answer.ask.prompt - 1)
        self.queued[id(answer)] = answer.ask.prompt + answer.ask.tokens
        self._waiting.append((answer, ready))
        return ready

    def step(self, now: float) -> float:
        """Begin a step; gives when it ends, or 0 where there is nothing to compute yet."""
        prompts = 0
        admitted: list[Answer] = []
        budget = self._size.batch_tokens - len(self._decoding)
        for answer, ready in list(self._waiting):
            needed = answer.ask.prompt - answer.known
            if len(self._decoding) + len(admitted) >= self._size.running or (prompts and prompts + needed > budget):
                break
            if ready <= now:
                admitted.append(answer)
                prompts += needed
        if not admitted and not self._decoding:
            return 0.0
        taken = set(map(id, admitted))
        self._waiting = deque(entry for entry in self._waiting if id(entry[0]) not in taken)
        speed = self._speed
        seconds = speed.step + speed.sequence * len(self._decoding) + speed.prompt_token * prompts
        for answer in admitted:
            answer.first = now + seconds
            self._prefixes.add(answer.ask.prefix, now)
            heapq.heappush(self._decoding, (self.steps + answer.ask.tokens, next(self._order), answer))
        self.steps += 1
        return now + seconds

    def finished(self, now: float) -> list[Answer]:
        """The step is over; gives the requests that are complete."""
        done = []
        while self._decoding and self._decoding[0][0] <= self.steps:
            answer = heapq.heappop(self._decoding)[2]
            answer.end = now
            del self.queued[id(answer)]
            self._using -= Counter(answer.ask.adapters)
            done.append(answer)
        return done

    def _touch(self, adapter: str) -> None:
        self._resident[adapter] = None
        self._resident.move_to_end(adapter)
        if len(self._resident) > self._size.adapters:
            unused = next((each for each in self._resident if not self._using[each]), None)
            if unused is not None:
                del self._resident[unused]
                self._loaded_at.pop(unused, None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One simulated run."""

    answers: Sequence[Answer]
    loads: int
    steps: int


def simulate(
    trace: Sequence[Ask],
    replicas: int,
    speed: Speed,
    size: Size,
    route: Route,
    *,
    warm: Sequence[Sequence[str]] = (),
    at_once: int | None = None,
) -> Outcome:
    """Send a trace, ordered by time, through a cluster. ``warm`` is what each replica holds before.

    With ``at_once`` the times of the trace do not count: so many requests are under way at any time.
    """
    fleet = {f"r{number}": _Replica(f"r{number}", speed, size) for number in range(replicas)}
    for replica, adapters in zip(fleet.values(), warm, strict=False):
        replica.warm(adapters)
    policy = Affinity()
    loads = {id: replica.report() for id, replica in fleet.items()}
    answers = [Answer(ask) for ask in trace]
    numbers = {id(answer): str(number) for number, answer in enumerate(answers)}
    order = count()
    events: list[tuple[float, int, str, int]] = []
    """When, a tie-breaker, which replica works (empty: a request comes), and the number of the request that comes."""
    reported = 0.0

    def wake(id: str, at: float) -> None:
        heapq.heappush(events, (at, next(order), id, -1))

    def begin_step(replica: _Replica, now: float) -> None:
        if replica.ends_at is None and (end := replica.step(now)):
            replica.ends_at = end
            wake(replica.id, end)

    def ask_at(number: int, at: float) -> None:
        answers[number].at = at
        heapq.heappush(events, (at, next(order), "", number))

    for number, answer in enumerate(answers[:at_once]):
        ask_at(number, answer.ask.at if at_once is None else 0.0)
    later = iter(range(at_once or 0, len(answers)))
    now = 0.0
    while events:
        now, _, id_, number = heapq.heappop(events)
        if now - reported >= REPORT_SECONDS:
            reported = now
            loads = {id: replica.report() for id, replica in fleet.items()}
        if number >= 0:
            ask = answers[number].ask
            work = Work(str(number), ask.adapters, ask.prompt + ask.tokens, prefix=ask.prefix)
            replica = fleet[route(policy, work, loads, now)]
            policy.began(work, replica.id, now)
            if (ready := replica.take(answers[number], now)) > now:
                wake(replica.id, ready)
            begin_step(replica, now)
            continue
        replica = fleet[id_]
        if replica.ends_at is not None and replica.ends_at <= now:
            replica.ends_at = None
            for answer in replica.finished(now):
                policy.ended(numbers[id(answer)])
                if at_once is not None and (number := next(later, -1)) >= 0:
                    ask_at(number, now)
        begin_step(replica, now)
    return Outcome(answers, sum(r.loads for r in fleet.values()), sum(r.steps for r in fleet.values()))


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a synthetic trace is like."""

    requests: int
    rate: float
    """Requests per second on average."""
    adapters: int
    skew: float = 1.0
    """Of the Zipf law by which adapters, one for each tenant, are asked for."""
    prompt: int = 200
    shared: int = 128
    """Tokens at the beginning of a tenant's prompts that are the same in all of them."""
    tokens: int = 100
    burst: float = 1.0
    """How many times the average rate comes in bursts, which fill a fifth of the time; 1: there are none."""


def zipf_weights(adapters: int, skew: float) -> list[float]:
    """How often each adapter is asked for, up to a factor."""
    return [rank**-skew for rank in range(1, adapters + 1)]


def make_trace(traffic: Traffic, seed: int) -> list[Ask]:
    """Requests of Zipf tenants, with lengths spread by a factor of two, at random times."""
    chance = random.Random(seed)
    ranks = chance.choices(range(traffic.adapters), zipf_weights(traffic.adapters, traffic.skew), k=traffic.requests)
    blocks = traffic.shared // BLOCK_TOKENS
    trace, now = [], 0.0
    for rank in ranks:
        now += chance.expovariate(traffic.rate * _pace(now, traffic.burst))
        chain = tuple(f"{rank}/{block}".encode() for block in range(blocks))
        prompt = max(traffic.shared + 1, round(traffic.prompt * chance.uniform(0.5, 1.5)))
        tokens = max(1, round(traffic.tokens * chance.uniform(0.5, 1.5)))
        trace.append(Ask(now, frozenset({f"a{rank}"}), prompt, tokens, chain))
    return trace


BURST_PERIOD = 10.0
BURST_SHARE = 0.2


def _pace(now: float, burst: float) -> float:
    """How many times the average rate is now."""
    in_burst = now % BURST_PERIOD < BURST_SHARE * BURST_PERIOD
    return burst if in_burst else (1 - burst * BURST_SHARE) / (1 - BURST_SHARE)


def warm_memory(traffic: Traffic, replicas: int, size: Size, route: str, seed: int) -> list[list[str]]:
    """What replicas hold once a routing has been in force for long: parts of the popular ones, or of all each."""
    popular = [f"a{rank}" for rank in range(min(traffic.adapters, size.adapters * replicas) - 1, -1, -1)]
    if route == "affinity":
        return [popular[number::replicas] for number in range(replicas)]
    if route == "hash":
        ids = sorted(f"r{number}" for number in range(replicas))
        held: dict[str, list[str]] = {id: [] for id in ids}
        for adapter in popular:
            held[_hashed(adapter, ids)].append(adapter)
        return [held[f"r{number}"] for number in range(replicas)]
    chance = random.Random(seed)
    weights = zipf_weights(traffic.adapters, traffic.skew)
    return [
        [f"a{rank}" for rank in chance.choices(range(traffic.adapters), weights, k=3 * size.adapters)]
        for _ in range(replicas)
    ]
