"""Is a prompt or retrieval enough, or does training pay? Four tenants' facts, each way on the same held-out rows.

    make bench-retrieval                              # half an hour or more on two cores
    python -m benchmarks.retrieval --tenant acme-bikes --top-k 1

Each tenant's facts are trained with the recipe ``facts``. The prompt has all of the tenant's answers; the documents are
its FAQ in Markdown: each fact under the first wording of its question. The held-out rows ask in other words.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from loramux import Client
from loramux.comparison import Comparison
from loramux_server.app.embedded import running_app_thread
from loramux_server.config import Address, Settings
from tools.make_data import Tenant, load_tenants

ROWS = Path(__file__).parents[1] / "adapters" / "data" / "messages"
TENANTS = ("corvane-locksmith", "solmere-yoga", "veldt-movers", "holmwick-library")


def faq(tenant: Tenant) -> str:
    """The tenant's facts as a page of questions and answers."""
    parts = [f"## {tenant.ask(fact.train[0])}\n\n{fact.answer}\n" for fact in tenant.facts]
    return "\n".join([f"# {tenant.shop}\n", *parts])


def compared(client: Client, tenant: Tenant, top_k: int | None) -> Comparison:
    """Train a tenant's adapter and compare it."""
    rows = ROWS / tenant.name
    job = client.train(
        tenant.name,
        rows / "train.jsonl",
        validation=rows / "tune.jsonl",
        recipe="facts",
        compare_prompt="\n".join([f"You speak for {tenant.shop}.", *(fact.answer for fact in tenant.facts)]),
        compare_documents=[faq(tenant)],
        compare_top_k=top_k,
    )
    job.wait(progress=True)
    found = job.info.comparison
    assert found is not None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure prompting, retrieval and fine-tuning on tenants' facts.")
    parser.add_argument("--tenant", action="append", help="Tenant of adapters/data; may be repeated.")
    parser.add_argument("--top-k", type=int, help="Passages before a row.")
    options = parser.parse_args()
    names = options.tenant or TENANTS
    tenants = {tenant.name: tenant for tenant in load_tenants()}
    free = Address("127.0.0.1", 0)
    with tempfile.TemporaryDirectory() as state:
        settings = Settings(state_dir=Path(state), listen=free, metrics_listen=None, http_listen=None)
        with running_app_thread(settings) as app, Client(app.address) as client:
            for name in names:
                found = compared(client, tenants[name], options.top_k)
                print(f"\n{name}, {len(tenants[name].facts)} facts, {found.questions} held-out rows")
                for cells in (("", *found.sides), *found.rows()):
                    print("| " + " | ".join(cells) + " |")
                print(found.verdict, flush=True)


if __name__ == "__main__":
    main()
