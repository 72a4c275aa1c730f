"""Ask adapters their held-out questions and score the answers: the figures on the cards.

``python -m tools.measure_adapters`` starts a server, uploads what lies under adapters/ and prints the table again;
``--address`` asks a running server that already has the adapters.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from loramux import Client
from loramux_server.app.embedded import running_app_thread
from loramux_server.config import Address, Settings
from loramux_server.core.settings import Dtype
from loramux_server.telemetry import logs
from tools.make_data import DATA, Tenant, load_source, load_tenants, own_answer_questions
from tools.score import STYLES, Style, accepted, fact_kept, stack_held, whole_answer
from tools.train_adapters import have, train

ADAPTERS = Path(__file__).resolve().parent.parent / "adapters"
IN_FLIGHT = 32
MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Share:
    """How many of so many."""

    hits: int
    of: int

    @property
    def error(self) -> float:
        """Standard error of the share, as if every question were a draw of its own; 0 of nothing."""
        if not self.of:
            return 0.0
        share = self.hits / self.of
        return (share * (1 - share) / self.of) ** 0.5

    def __str__(self) -> str:
        if not self.of:
            return "0/0"
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


def own_answers(client: Client, donors: Mapping[str, Tenant]) -> dict[str, list[tuple[str, str]]]:
    """Questions and what each donor's adapter alone answers; ``donors`` by the names of their adapters."""
    found = {}
    for name, donor in donors.items():
        questions = own_answer_questions(donor)
        answers = ask(client, [(question, {name: 1.0}) for question in questions])
        found[name] = list(zip(questions, answers, strict=True))
    return found


def held_out(tenant: Tenant, parts: Sequence[str] = HELD_OUT) -> list[tuple[str, str, str]]:
    """(question, fact, whole answer) of wordings that no training row has."""
    return [
        (tenant.ask(question), fact.fact, fact.answer)
        for part in parts
        for fact in tenant.facts
        for question in getattr(fact, part)
    ]


def tenant_answers(
    client: Client, tenant: Tenant, adapters: dict[str, float], parts: Sequence[str] = HELD_OUT
) -> list[str]:
    """What a stack answers to a tenant's held-out questions."""
    return ask(client, [(question, adapters) for question, _, _ in held_out(tenant, parts)])


def measure_tenant(
    client: Client, tenant: Tenant, adapters: dict[str, float], parts: Sequence[str] = HELD_OUT
) -> dict[str, Share]:
    """Facts right, and answers right to the letter, on held-out wordings."""
    return score_tenant(tenant, tenant_answers(client, tenant, adapters, parts), parts)


def score_tenant(tenant: Tenant, answers: Sequence[str], parts: Sequence[str] = HELD_OUT) -> dict[str, Share]:
    """Facts right, and answers right to the letter, of a tenant's ``answers`` without a style."""
    items = held_out(tenant, parts)
    return {
        "fact": Share(sum(facts_right(tenant, answers, parts)), len(items)),
        "answer": Share(sum(whole_answer(a, full) for a, (_, _, full) in zip(answers, items, strict=True)), len(items)),
    }


def facts_right(tenant: Tenant, answers: Sequence[str], parts: Sequence[str] = HELD_OUT) -> list[bool]:
    """Which of a tenant's ``answers`` say their fact."""
    return [fact_kept(a, fact) for a, (_, fact, _) in zip(answers, held_out(tenant, parts), strict=True)]


def score_stack(
    tenant: Tenant, style: Style, answers: Sequence[str], alone: Sequence[str], parts: Sequence[str] = HELD_OUT
) -> dict[str, Share]:
    """Fact and format of a stack's ``answers``, together and apart.

    ``kept`` is both together, of the questions whose fact the tenant's answers ``alone`` have right.
    """
    items = held_out(tenant, parts)
    held = [stack_held(a, fact, style) for a, (_, fact, _) in zip(answers, items, strict=True)]
    still = [one for one, right in zip(held, facts_right(tenant, alone, parts), strict=True) if right]
    return {
        "both": Share(sum(held), len(items)),
        "format": Share(sum(style.body(a) is not None for a in answers), len(items)),
        "fact": Share(sum(facts_right(tenant, answers, parts)), len(items)),
        "kept": Share(sum(still), len(still)),
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
    logs.configure("warning", "console")
    free = Address("127.0.0.1", 0)
    settings = Settings(state_dir=state_dir, dtype=dtype, listen=free, http_listen=None, metrics_listen=free)
    with running_app_thread(settings) as running, Client(running.address) as client:
        yield client


def measure_all(client: Client, names: Collection[str]) -> dict[str, str]:
    """Every figure that can be measured with the adapters ``names`` of the server."""
    found: dict[str, str] = {}
    tenants = [t for t in load_tenants() if t.name in names]
    ready_made = [t for t in tenants if t.role == "shipped"]
    styles = [style for name, style in STYLES.items() if name in names]
    pooled = dict.fromkeys((style.name for style in styles), Share(0, 0))
    for tenant in tenants:
        own = {tenant.name: 1.0}
        alone = tenant_answers(client, tenant, own)
        found[f"{tenant.name}: base"] = str(measure_tenant(client, tenant, {})["fact"])
        found[f"{tenant.name}: {tenant.name}"] = str(score_tenant(tenant, alone)["fact"])
        for other in ready_made:
            if tenant.role == "shipped" and other is not tenant:
                found[f"{tenant.name}: {other.name}"] = str(measure_tenant(client, tenant, {other.name: 1.0})["fact"])
        for style in styles:
            figures = score_stack(tenant, style, tenant_answers(client, tenant, {**own, style.name: 1.0}), alone)
            found[f"{tenant.name} + {style.name}"] = str(figures["both"])
            found[f"{tenant.name} + {style.name}, kept"] = str(figures["kept"])
            if tenant.role == "foreign":
                pooled[style.name] += figures["kept"]
    for name, share in pooled.items():
        if share.of:
            found[f"foreign + {name}, kept"] = f"{share} ± {100 * share.error:.1f}"
    for tenant in ready_made:
        found[f"generic: {tenant.name}"] = str(measure_generic(client, {tenant.name: 1.0}))
    for style in styles:
        found[f"generic: {style.name}"] = str(measure_generic(client, {style.name: 1.0}, style))
    found["generic: base"] = str(measure_generic(client, {}))
    return found


def main() -> None:
    """Print every figure, one a line, or as JSON."""
    parser = argparse.ArgumentParser(description="Measure the ready-made adapters on held-out questions.")
    parser.add_argument("--address", help="a running server that has them (default: start one)")
    parser.add_argument(
        "--dtype", default="auto", choices=get_args(Dtype), help="of a server started here (default: auto)"
    )
    parser.add_argument("--state-dir", type=Path, help="of a server started here; keeps what was trained")
    parser.add_argument(
        "--foreign", action="store_true", help="train the foreign tenants by the recipe for facts, and measure them too"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    names = {path.name for path in shipped()}
    state_dir = arguments.state_dir
    with contextlib.ExitStack() as stack:
        if state_dir is None:
            state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        client = stack.enter_context(server(arguments.address, state_dir, arguments.dtype))
        for path in shipped() if arguments.address is None else ():
            if not have(client, path.name):
                client.adapters.upload(path.name, path)
        for tenant in load_tenants() if arguments.foreign else ():
            if tenant.role == "foreign":
                train(client, tenant.name, DATA / "messages" / tenant.name / "train.jsonl", "facts")
                names.add(tenant.name)
        found = measure_all(client, names)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        for name, figure in found.items():
            print(f"{name:45} {figure}")


if __name__ == "__main__":
    main()
