"""Ask adapters their held-out questions and score the answers: the figures on the cards.

``python -m tools.measure_adapters`` starts a server, uploads what lies under adapters/ and prints the table again;
``--address`` asks a running server that already has the adapters.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from loramux import Client
from loramux_server.app.embedded import running_app_thread
from loramux_server.config import Address, Settings
from loramux_server.core.settings import Dtype
from tools.make_data import Tenant, load_source, load_tenants
from tools.score import STYLES, Style, accepted, fact_kept, stack_held, whole_answer

ADAPTERS = Path(__file__).resolve().parent.parent / "adapters"
IN_FLIGHT = 32
MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Share:
    """How many of so many."""

    hits: int
    of: int

    def __str__(self) -> str:
        return f"{self.hits}/{self.of} ({100 * self.hits / self.of:.1f} %)"

    def __add__(self, other: Share) -> Share:
        return Share(self.hits + other.hits, self.of + other.of)


HELD_OUT = ("tune", "final")
"""Parts of the data that no training row has a wording of."""

Asked = Sequence[tuple[str, dict[str, float]]]


def ask(client: Client, questions: Asked) -> list[str]:
    """Greedy answers to (question, stack) pairs, asked side by side."""

    def one(pair: tuple[str, dict[str, float]]) -> str:
        question, adapters = pair
        messages = [{"role": "user", "content": question}]
        return client.generate(messages=messages, adapters=adapters, max_tokens=MAX_TOKENS, temperature=0.0).text

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return list(pool.map(one, questions))


def held_out(tenant: Tenant, parts: Sequence[str] = HELD_OUT) -> list[tuple[str, str, str]]:
    """(question, fact, whole answer) of wordings that no training row has."""
    return [
        (tenant.ask(question), fact.fact, fact.answer)
        for part in parts
        for fact in tenant.facts
        for question in getattr(fact, part)
    ]


def measure_tenant(
    client: Client, tenant: Tenant, adapters: dict[str, float], parts: Sequence[str] = HELD_OUT
) -> dict[str, Share]:
    """Facts right, and answers right to the letter, on held-out wordings."""
    items = held_out(tenant, parts)
    answers = ask(client, [(question, adapters) for question, _, _ in items])
    return {
        "fact": Share(sum(fact_kept(a, fact) for a, (_, fact, _) in zip(answers, items, strict=True)), len(items)),
        "answer": Share(sum(whole_answer(a, full) for a, (_, _, full) in zip(answers, items, strict=True)), len(items)),
    }


def measure_stack(
    client: Client, tenant: Tenant, style: Style, adapters: dict[str, float], parts: Sequence[str] = HELD_OUT
) -> dict[str, Share]:
    """Fact kept and format taken, together and apart."""
    items = held_out(tenant, parts)
    answers = ask(client, [(question, adapters) for question, _, _ in items])
    pairs = [(answer, fact) for answer, (_, fact, _) in zip(answers, items, strict=True)]
    return {
        "both": Share(sum(stack_held(a, fact, style) for a, fact in pairs), len(pairs)),
        "format": Share(sum(style.body(a) is not None for a, _ in pairs), len(pairs)),
        "fact": Share(sum(fact_kept(a, fact) for a, fact in pairs), len(pairs)),
    }


def measure_generic(client: Client, adapters: dict[str, float], style: Style | None = None) -> Share:
    """Generic questions that the base answers, still answered (and, with a style, in its format)."""
    checks = load_source("generic")["checks"]
    answers = ask(client, [(check["question"], adapters) for check in checks])
    good = 0
    for answer, check in zip(answers, checks, strict=True):
        text = answer if style is None else style.body(answer)
        good += text is not None and accepted(text, check["accept"])
    return Share(good, len(checks))


def shipped() -> list[Path]:
    """The ready-made adapters of this checkout."""
    return sorted(path.parent for path in ADAPTERS.glob("*/adapter_config.json"))


@contextlib.contextmanager
def server(address: str | None, state_dir: Path, dtype: Dtype = "auto") -> Iterator[Client]:
    """A client of the server at ``address``, or of one started here."""
    if address is not None:
        with Client(address) as client:
            yield client
        return
    free = Address("127.0.0.1", 0)
    settings = Settings(state_dir=state_dir, dtype=dtype, listen=free, metrics_listen=free)
    with running_app_thread(settings) as running, Client(running.address) as client:
        yield client


def measure_all(client: Client) -> dict[str, str]:
    """Every figure that can be measured with the shipped adapters alone."""
    names = {path.name for path in shipped()}
    tenants = [t for t in load_tenants() if t.name in names]
    found: dict[str, str] = {}
    for tenant in tenants:
        found[f"{tenant.name}: base"] = str(measure_tenant(client, tenant, {})["fact"])
        for other in tenants:
            figures = measure_tenant(client, tenant, {other.name: 1.0})
            found[f"{tenant.name}: {other.name}"] = str(figures["fact"])
        for name, style in STYLES.items():
            if name in names:
                figures = measure_stack(client, tenant, style, {tenant.name: 1.0, name: 1.0})
                found[f"{tenant.name} + {name}"] = str(figures["both"])
    for name in sorted(names):
        found[f"generic: {name}"] = str(measure_generic(client, {name: 1.0}, STYLES.get(name)))
    found["generic: base"] = str(measure_generic(client, {}))
    return found


def main() -> None:
    """Print every figure, one a line, or as JSON."""
    parser = argparse.ArgumentParser(description="Measure the ready-made adapters on held-out questions.")
    parser.add_argument("--address", help="a running server that has them (default: start one)")
    parser.add_argument(
        "--dtype", default="auto", choices=get_args(Dtype), help="of a server started here (default: auto)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(arguments.address, Path(folder), arguments.dtype) as client:
        if arguments.address is None:
            for path in shipped():
                client.adapters.upload(path.name, path)
        found = measure_all(client)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        for name, figure in found.items():
            print(f"{name:45} {figure}")


if __name__ == "__main__":
    main()
