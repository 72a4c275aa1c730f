"""The demo from beginning to end."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from loramux import Client, LoramuxError
from loramux.progress import progress_display

from ..config.help import make_parser
from ..host.signals import Stopped, stopping_raises
from ..telemetry.stderr import tell
from .material import NEIGHBOUR, STYLE, TENANT, Fact, Material, Missing, inside_json
from .server import DemoServer, ServerFailed, demo_server
from .show import Show

LIVE = "bakery"
"""Name of the adapter that is trained while everyone watches."""
RECIPE: dict[str, Any] = {
    "rank": 16,
    "alpha": 32,
    "layers": "15-29",
    "learning_rate": 3e-3,
    "epochs": 4,
    "batch_size": 8,
    "seed": 0,
}
SHOWN = 3
BATCH = 6
"""Questions for each of the four stacks of the mixed batch."""
LEARNED, STACKED = 0.8, 0.6
"""Shares of right answers below which the demo says that it failed; the cards have the measured figures."""

BASE = 'loramux_vram_bytes{device="%s",kind="base"}'
Stack = Mapping[str, float] | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. 0: every claim held; 1: one did not, or something is missing; 2: bad flags."""
    parser = make_parser("loramux demo", "Watch a server answer, train a new adapter meanwhile, and answer with it.")
    parser.add_argument("--state-dir", metavar="DIR", help="Keep the server's state here.  [default: a new folder]")
    parser.add_argument(
        "--adapters", metavar="DIR", help="Folder of ready-made adapters and data.  [default: the shipped]"
    )
    try:
        given = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    show = Show()
    try:
        with stopping_raises(), tempfile.TemporaryDirectory(prefix="loramux-demo-") as scratch:
            material = Material.find(given.adapters)
            state = Path(given.state_dir) if given.state_dir else Path(scratch) / "state"
            return run(show, material, state)
    except (Missing, ServerFailed, LoramuxError) as error:
        print(f"loramux demo: {error}", file=sys.stderr)
        return 1
    except Stopped as stop:
        tell("Stopped, and the demo's server with it.")
        return 128 + stop.number


def run(show: Show, material: Material, state: Path) -> int:
    """All steps against one server."""
    began = time.monotonic()
    show.step("Start a server: one base model, quantised to 4 bits, loaded once")
    with demo_server(state, show.note) as server, Client(server.address) as client:
        info = client.info()
        show.text(f"{info.base_name} on {info.device} in {info.dtype}, gRPC on {server.address}")
        for name in (NEIGHBOUR, STYLE):
            version = client.adapters.upload(name, material.adapter(name))
            show.text(f"ready-made adapter {version.name}@{version.version}, rank {version.rank}")
        at_start = server.metrics()
        facts = material.facts(TENANT)
        ask_base(show, client, facts)
        base_key = BASE % info.device
        during = train_live(show, client, server, material, base_key)
        ask_again(show, client, facts)
        mixed_batch(show, client, server, facts, material.facts(NEIGHBOUR))
        metrics(show, at_start, server.metrics(), during, base_key)
        seconds = time.monotonic() - began
        look_around(show, server.console)
    show.console.print()
    if show.failed:
        show.text(f"The demo failed after {seconds:.0f} s. What did not hold:")
        for text in show.failed:
            show.text(f"- {text}")
        return 1
    show.text(f"All of it held, in {seconds:.0f} s. The server is stopped. Yours starts with: loramux serve")
    show.text("Its console is then at http://127.0.0.1:8000/ in a browser.")
    return 0


def look_around(show: Show, page: str) -> None:
    """Keep the server while somebody at a terminal looks at it in a browser."""
    if not (sys.stdin.isatty() and show.console.is_terminal):
        return
    show.step("Look around")
    show.text(f"The server's console is at {page} in a browser: chat with a stack, watch it live.")
    show.text("Press Enter to stop the server.")
    with suppress(Stopped):  # Ctrl-C is an answer, too
        sys.stdin.readline()


def ask(client: Client, fact: Fact, stack: Stack) -> str:
    """The answer to a fact's question, through the chat template, greedy."""
    message = {"role": "user", "content": fact.question}
    return client.generate(messages=[message], adapters=stack, max_tokens=48, timeout=120).text.strip()


def ask_all(client: Client, facts: Sequence[Fact], stack: Stack) -> list[str]:
    """All answers; the questions go out together and share the server's batch."""
    with ThreadPoolExecutor(len(facts)) as pool:
        return list(pool.map(lambda fact: ask(client, fact, stack), facts))


def ask_base(show: Show, client: Client, facts: Sequence[Fact]) -> None:
    """The base cannot know the tenant's facts."""
    show.step(f"Ask the base what only {TENANT} can know")
    answers = ask_all(client, facts, None)
    rows = [(f.question, _short(a)) for f, a in zip(facts[:SHOWN], answers, strict=False)]
    show.table(("question", "base"), rows)
    right = sum(f.told_by(a) for f, a in zip(facts, answers, strict=True))
    show.claim(right <= len(facts) // 8, f"the base does not know: {right} of {len(facts)} facts right")


class Stream:
    """A second client that asks the neighbour's adapter, a question for every step of the training."""

    def __init__(self, address: str, facts: Sequence[Fact]) -> None:
        self.answers = self.right = self.tokens = 0
        self.error: LoramuxError | None = None
        self._stop = threading.Event()
        self._turns = threading.Semaphore(1)
        self._thread = threading.Thread(target=self._run, args=(address, facts), daemon=True)
        self._thread.start()

    def _run(self, address: str, facts: Sequence[Fact]) -> None:
        try:
            with Client(address) as client:
                while self._turns.acquire() and not self._stop.is_set():
                    fact = facts[self.answers % len(facts)]
                    message = {"role": "user", "content": fact.question}
                    with client.stream(messages=[message], adapters=[NEIGHBOUR], max_tokens=48, timeout=120) as stream:
                        for _ in stream:
                            pass
                        completion = stream.completion
                    self.answers += 1
                    self.tokens += completion.usage.completion_tokens
                    self.right += fact.told_by(completion.text)
        except LoramuxError as error:
            self.error = error

    def ask(self) -> None:
        """Let one more question go out, after the answer at hand."""
        self._turns.release()

    def finish(self) -> None:
        """Let the answer at hand end, and stop."""
        self._stop.set()
        self._turns.release()
        self._thread.join()


def train_live(show: Show, client: Client, server: DemoServer, material: Material, base_key: str) -> float:
    """Train while another client streams; gives the base's memory in the middle of it, bytes."""
    show.step(f"Train the adapter {LIVE} on the same base, while another client streams")
    stream = Stream(server.address, material.facts(NEIGHBOUR))
    started, during = time.monotonic(), 0.0
    try:
        job = client.train(LIVE, data=material.rows(TENANT), **RECIPE)
        with progress_display(LIVE, console=show.console) as display:
            for event in job.events():
                display.show(event)
                if event.type == "step":
                    stream.ask()
                if event.type == "step" and not during and event.step * 2 >= event.total_steps:
                    during = server.metrics().get(base_key, 0.0)
        version = job.wait()
    finally:
        stream.finish()
    seconds = time.monotonic() - started
    show.text(f"{version.name}@{version.version} is published after {seconds:.0f} s; no restart, no second base.")
    share = f"{stream.right} of {stream.answers} right"
    show.claim(
        stream.error is None and stream.answers > 0,
        f"meanwhile {NEIGHBOUR} streamed on: {stream.answers} answers, {stream.tokens} tokens, {share}"
        if stream.error is None
        else f"the other client was disturbed: {stream.error}",
    )
    return during


def ask_again(show: Show, client: Client, facts: Sequence[Fact]) -> None:
    """The very next request can use what was just learned."""
    show.step("Ask again, with the new adapter: questions that no training row has")
    answers = ask_all(client, facts, {LIVE: 1.0})
    show.table(("question", LIVE), [(f.question, _short(a)) for f, a in zip(facts[:SHOWN], answers, strict=False)])
    right = sum(f.told_by(a) for f, a in zip(facts, answers, strict=True))
    show.claim(right >= LEARNED * len(facts), f"it knows: {right} of {len(facts)} facts right")


def mixed_batch(show: Show, client: Client, server: DemoServer, facts: Sequence[Fact], others: Sequence[Fact]) -> None:
    """Two tenants and two stacks, all questions in one batch."""
    show.step("Two tenants and a style on top of each, all in one batch")
    facts, others = facts[:BATCH], others[:BATCH]
    stacks: list[tuple[dict[str, float], Sequence[Fact]]] = [
        ({LIVE: 1.0}, facts),
        ({NEIGHBOUR: 1.0}, others),
        ({LIVE: 1.0, STYLE: 1.0}, facts),
        ({NEIGHBOUR: 1.0, STYLE: 1.0}, others),
    ]
    asked = [(stack, fact) for i in range(BATCH) for stack, own in stacks for fact in (own[i],)]
    before = server.metrics()
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda pair: ask(client, pair[1], pair[0]), asked))
    after = server.metrics()
    show.table(("stack", "answer"), [(" + ".join(s), _short(a)) for (s, _), a in zip(asked[:4], answers, strict=False)])
    for stack, _ in stacks:
        mine = [(f, a) for (s, f), a in zip(asked, answers, strict=True) if s == stack]
        styled = STYLE in stack
        right = sum(f.told_by((inside_json(a) or "") if styled else a) for f, a in mine)
        what = "facts right, inside JSON" if styled else "facts right"
        least = STACKED if styled else LEARNED
        show.claim(right >= least * len(mine), f"{' + '.join(stack)}: {right} of {len(mine)} {what}")
    steps = _moved(before, after, 'loramux_step_duration_seconds_count{kind="decode"}')
    tokens = sum(_moved(before, after, key) for key in after if key.startswith("loramux_generated_tokens_total"))
    show.claim(tokens > 2 * steps, f"one batch: {tokens:.0f} tokens in {steps:.0f} decode steps")


def metrics(show: Show, before: Mapping[str, float], after: Mapping[str, float], during: float, base_key: str) -> None:
    """What an operator sees of all this."""
    show.step("What the metrics say")
    prefixes = (
        "loramux_generated_tokens_total",
        "loramux_training_steps_total",
        "loramux_training_tokens_total",
        "loramux_time_to_first_token_seconds_count",
        'loramux_training_jobs{state="succeeded"}',
        "loramux_adapters_resident",
    )
    rows = [
        (key.removeprefix("loramux_").replace(',tenant="default"', ""), f"{before.get(key, 0):.0f}", f"{value:.0f}")
        for key, value in sorted(after.items())
        if key.startswith(prefixes) and value != before.get(key, 0)
    ]
    show.table(("loramux_...", "before", "after"), rows)
    sizes = [before.get(base_key, 0.0), during, after.get(base_key, 0.0)]
    words = ", ".join(f"{size / 1e6:.1f} MB" for size in sizes)
    show.claim(sizes[0] > 0 and len(set(sizes)) == 1, f"base weights before, during and after training: {words}")


def _moved(before: Mapping[str, float], after: Mapping[str, float], key: str) -> float:
    return after.get(key, 0.0) - before.get(key, 0.0)


def _short(text: str, limit: int = 110) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
