"""Do a tenant and a style that never met hold together? Trained and asked anew, seed after seed.

    make bench-stacking                                 # the documented recipe, three seeds; takes long
    make bench-stacking BENCH_ARGS=--quick              # a few steps of each adapter, to see that it runs
    python -m benchmarks.stacking --variant documented weight-1.0 styled-25 --seeds 3

Donors, styles and tenants are trained on a server started here; the styles see the donors only. Then the tenants'
held-out questions are asked with tenant and style at weights 1 and 1: right is what has the fact and, to the letter,
the format. Beside it: each tenant alone, the generic questions that the base answers with a tenant active, and, of
foreign tenants, what the stack keeps of the questions that the tenant alone has right.

Everything that was trained stays in the state directory under a name made of rows and recipe, and every seed's
figures in a file: a run that was stopped goes on where it was, and variants share what is the same in them. Another
``--state-dir`` begins anew, as one must after changes to the trainer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import msgspec

from loramux import Client, Job, NotFound
from loramux.types import FINAL_STATES
from loramux_server.app.embedded import running_app_thread
from loramux_server.config import Address, Settings
from loramux_server.core.settings import Dtype
from loramux_server.host.resources import usable_cpus
from loramux_server.telemetry import logs
from tools.make_data import MEASURED, load_source, load_tenants
from tools.make_data import Tenant as Shop
from tools.measure_adapters import HELD_OUT, Share, ask, own_answers, score_stack, score_tenant, tenant_answers
from tools.score import STYLES, accepted

from .goals import as_json
from .machine import describe, sentence
from .serving import RESULTS, ROOT, console
from .stacking_recipes import VARIANTS, Adapter, Plan, Scope, gone_on, plan
from .stacking_table import Count, Seed, Stack, Tenant, figures, goals, make_table

AT_ONCE = "max_training_jobs"
QUICK_STEPS = 2


@contextlib.contextmanager
def open_server(options: argparse.Namespace) -> Iterator[Client]:
    """A client of a server that keeps its state and trains several jobs at once where it can."""
    free = Address("127.0.0.1", 0)
    several = {AT_ONCE: options.jobs} if AT_ONCE in Settings.model_fields else {}
    settings = Settings(
        state_dir=options.state_dir,
        dtype=options.dtype,
        threads=options.threads,
        listen=free,
        http_listen=None,
        metrics_listen=None,
        **several,
    )
    with running_app_thread(settings) as running, Client(running.address) as client:
        yield client


def train(client: Client, adapters: Sequence[Adapter]) -> dict[str, float]:
    """Train what the server does not have, all at once; gives the seconds of each adapter's job by its name."""
    jobs = {each.name: _job(client, each) for each in adapters}
    for name, job in jobs.items():
        if not job.info.final:
            job.wait()
            console.print(f"  {name}: {_seconds(job):.0f} s", highlight=False)
    return {name: _seconds(job) for name, job in jobs.items()}


def _job(client: Client, adapter: Adapter) -> Job:
    """The job that trained an adapter, one that is under way, or a new one."""
    try:
        wanted = {client.adapters.get(adapter.name).versions[0].job_id}
    except NotFound:
        wanted = set()
    for info in client.jobs.list(name=adapter.name):
        if info.id in wanted or (info.state not in FINAL_STATES and info.state != "paused"):
            return client.jobs.get(info.id)
    return client.train(adapter.name, data=[dict(row) for row in adapter.rows], **adapter.recipe)


def _seconds(job: Job) -> float:
    info = job.refresh()
    return info.finished_at - info.started_at


class Generic:
    """Generic questions that the base answers."""

    def __init__(self, client: Client) -> None:
        checks: list[dict[str, Any]] = load_source("generic")["checks"]
        answers = ask(client, [(check["question"], {}) for check in checks])
        self._checks = [c for c, answer in zip(checks, answers, strict=True) if accepted(answer, c["accept"])]

    def kept(self, client: Client, adapters: dict[str, float], style: str | None = None) -> Count:
        """How many of them are still answered under a stack, and in a style's format where one is given."""
        answers = ask(client, [(check["question"], adapters) for check in self._checks])
        bodies = answers if style is None else [STYLES[style].body(answer) for answer in answers]
        pairs = zip(bodies, self._checks, strict=True)
        right = sum(body is not None and accepted(body, check["accept"]) for body, check in pairs)
        return Count(right, len(self._checks))


def measure(
    client: Client, made: Plan, seed: int, shops: Sequence[Shop], generic: Generic, seconds: Mapping[str, float],
    parts: Sequence[str],
) -> Seed:  # fmt: skip
    """Ask the adapters of a plan everything."""
    tenants: dict[str, Tenant] = {}
    stacks: dict[str, dict[str, Stack]] = {name: {} for name in made.styles}
    for shop in shops:
        own = made.tenants[shop.name].name
        answers = tenant_answers(client, shop, {own: 1.0}, parts)
        alone = score_tenant(shop, answers, parts)
        kept = generic.kept(client, {own: 1.0})
        tenants[shop.name] = Tenant(
            _count(alone["answer"]), _count(alone["fact"]), kept, seconds[own], shop.role == "foreign"
        )
        for name, style in made.styles.items():
            stacked = tenant_answers(client, shop, {own: 1.0, style.name: 1.0}, parts)
            found = score_stack(shop, STYLES[name], stacked, answers, parts)
            stacks[name][shop.name] = Stack(**{what: _count(share) for what, share in found.items()})
    lone = {name: generic.kept(client, {style.name: 1.0}, name) for name, style in made.styles.items()}
    return Seed(seed, tenants, stacks, lone, {name: seconds[style.name] for name, style in made.styles.items()})


def _count(share: Share) -> Count:
    return Count(share.hits, share.of)


def run_seed(
    client: Client, variant: str, seed: int, scope: Scope, generic: Generic, options: argparse.Namespace
) -> Seed:
    """Train and measure one seed of a variant, or read what an earlier run found."""
    made = plan(VARIANTS[variant], seed, scope)
    path: Path = options.state_dir / "figures" / f"{made.key}-{'-'.join(options.parts)}.json"
    with contextlib.suppress(FileNotFoundError, msgspec.ValidationError):  # figures of an older kind are asked anew
        return msgspec.json.decode(path.read_bytes(), type=Seed)
    console.print(f"{variant}, seed {seed}", highlight=False)
    seconds: dict[str, float] = {}
    for stage in made.stages:
        seconds |= train(client, stage)
    if made.small:
        donors = {made.small[shop.name].name: shop for shop in scope.tenants if shop.name in made.small}
        made = gone_on(made, own_answers(client, donors), scope)
        seconds |= train(client, list(made.styles.values()))
    shops = [shop for shop in scope.tenants if shop.name in scope.unseen]
    found = measure(client, made, seed, shops, generic, seconds, options.parts)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.encode(found))
    return found


def write(path: Path, machine: dict[str, Any], results: Mapping[str, Sequence[Seed]], base: str) -> None:
    """All figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {
        "machine": machine,
        "base": base,
        "variants": {
            name: {
                "variant": asdict(VARIANTS[name]),
                "figures": {what: asdict(figure) for what, figure in figures(seeds).items()},
                "goals": as_json(goals(name, figures(seeds))),
                "seeds": [asdict(seed) for seed in seeds],
            }
            for name, seeds in results.items()
            if seeds
        },
    }
    path.write_text(json.dumps(made, indent=2) + "\n")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    unseen = [t.name for t in load_tenants() if t.role in MEASURED]
    listed = "; ".join(f"{v.name}: {v.about}" for v in VARIANTS.values())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stacking", description=(__doc__ or "").partition("\n")[0], epilog=listed
    )
    add = parser.add_argument
    add("--quick", action="store_true", help=f"{QUICK_STEPS} steps, one donor, tenant, style: to see that it runs")
    add("--variant", nargs="+", choices=VARIANTS, metavar="NAME", help="recipes to try (default: documented)")
    add("--seeds", type=int, metavar="N", help="(default: 3; quick: 1)")
    add("--tenants", nargs="+", choices=unseen, help="that are measured (default: all that are no donors)")
    add("--styles", nargs="+", choices=STYLES, help="(default: all)")
    add("--jobs", type=int, default=4, metavar="N", help="that train at once, where the server can (default: 4)")
    add("--dtype", choices=get_args(Dtype), default="auto", help="(default: auto)")
    add("--threads", type=int, default=usable_cpus(), help="(default: affinity and quota)")
    add("--state-dir", type=Path, default=ROOT / "build" / "bench-stacking", help="keeps what was trained")
    add("--json", type=Path, metavar="FILE", help="(default: a new file in benchmarks/results)")
    options = parser.parse_args(arguments)
    options.variant = options.variant or ["donors-1" if options.quick else "documented"]
    options.seeds = options.seeds or (1 if options.quick else 3)
    options.tenants = options.tenants or (unseen[:1] if options.quick else unseen)
    options.styles = options.styles or (["json"] if options.quick else list(STYLES))
    options.settings = {"max_steps": QUICK_STEPS} if options.quick else {}
    options.parts = HELD_OUT[-1:] if options.quick else HELD_OUT
    if min(options.seeds, options.jobs, options.threads) < 1:
        parser.error("--seeds, --jobs and --threads must be at least 1")
    return options


def main() -> None:
    """Train and measure every variant and seed, report."""
    options = parse()
    logs.configure("warning", "console")
    machine = describe()
    console.print(sentence(machine), highlight=False, soft_wrap=True)
    options.state_dir.mkdir(parents=True, exist_ok=True)
    path = options.json or RESULTS / f"stacking-{time.strftime('%Y%m%d-%H%M%S')}.json"
    results: dict[str, list[Seed]] = {name: [] for name in options.variant}
    with open_server(options) as client:
        info = client.info()
        base = f"{info.base_fingerprint}/{info.dtype}"
        scope = Scope(base, load_tenants(), options.styles, options.tenants, options.settings)
        generic = Generic(client)
        for seed in range(options.seeds):  # the first figures of every variant come before the second of any
            for variant in options.variant:
                results[variant].append(run_seed(client, variant, seed, scope, generic, options))
                write(path, machine, results, base)
    console.print(
        make_table(results, f"{len(options.tenants)} tenants that no style saw, weights 1 and 1, {info.dtype}")
    )
    for variant, seeds in results.items():
        for goal in goals(variant, figures(seeds)):
            console.print(str(goal), highlight=False, soft_wrap=True)
    console.print(f"Figures: {path}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
