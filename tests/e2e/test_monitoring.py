"""A real Prometheus on a server with much to tell: every query of every panel, rule and alert has an answer."""

from __future__ import annotations

import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

import loramux
from loramux import Client
from loramux_server.core.callers.keys import ApiKey
from loramux_server.core.callers.principal import Scope
from loramux_server.core.callers.quota import tenant_subject
from loramux_server.store.store import Store
from tests.browser import SCREENSHOTS
from tests.certificates import LOOPBACK, new_ca
from tests.damage import flip_bit
from tests.monitoring import plain, queries, rules
from tests.prometheus import Prometheus, needs_prometheus, prometheus
from tools.dashboard.queries import VARIABLES
from tools.measure_adapters import shipped

from .conftest import StateDir
from .dashboard_picture import draw
from .server_process import ServerProcess, kill

pytestmark = [pytest.mark.e2e, pytest.mark.slow, needs_prometheus]

TENANTS = ("ann", "bob", "eve")
CA = new_ca()
ROWS = [{"prompt": f"Where is shop {i}?", "completion": f" In street {i}."} for i in range(8)]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}
LONG_ENOUGH = 180
"""Seconds that a picture shows."""
PATIENCE = 120
"""Seconds for all answers to come; most are there within 20."""

ZERO_IS_WELL = {
    "Preemptions": "the batch is not made larger than its cache",
    "Late first tokens": "answers are quick",
    "Engine restarts": "no engine dies here; test_engine_dies.py has that",
}
"""Panels that may show 0 even for a server under load."""


@dataclass
class Load:
    """What tenants ask, each in a thread of its own, until it is told to stop."""

    clients: dict[str, Client]
    stop: threading.Event = field(default_factory=threading.Event)

    def asks(self, tenant: str, *stacks: list[str]) -> None:
        """One request after another, with each of the stacks in turn."""
        number = 0
        while not self.stop.is_set():
            number += 1
            shape = {"response_format": SCHEMA} if number % 5 == 0 else {}
            try:
                self.clients[tenant].generate(
                    "The opening hours of the shops in the old town, street by street, in spring: ",
                    adapters=stacks[number % len(stacks)],
                    max_tokens=8,
                    **shape,
                )
            except loramux.ResourceExhausted as error:
                self.stop.wait(min(error.retry_after or 1, 2))
            except loramux.DataLoss:
                assert "torn" in stacks[number % len(stacks)]

    @contextmanager
    def running(self) -> Iterator[None]:
        one, two, three, four = (folder.name for folder in shipped())
        asked = {"ann": ([one], [two], []), "bob": ([three], [four], ["torn"]), "eve": ([two],)}
        with ThreadPoolExecutor(2 * len(asked)) as pool:
            asking = [pool.submit(self.asks, tenant, *stacks) for tenant, stacks in 2 * list(asked.items())]
            try:
                yield
            finally:
                self.stop.set()
        for each in asking:
            each.result()


@dataclass
class Monitored:
    """A server, clients of its tenants and its operator, and the Prometheus that watches it."""

    state: Path
    clients: dict[str, Client]
    prometheus: Prometheus


@pytest.fixture
def monitored(
    tmp_path: Path, state_with_base: StateDir, start_server: Callable[..., ServerProcess]
) -> Iterator[Monitored]:
    state, keys = state_with_base("monitored"), {name: ApiKey.generate() for name in (*TENANTS, "operator")}
    store = Store.open(state)
    for name, key in keys.items():
        store.keys.create(key, name, Scope if name == "operator" else set(Scope) - {Scope.ADMIN})
    store.quotas.set(tenant_subject("eve"), {"requests_per_minute": 6})
    store.close()
    CA.issue(*LOOPBACK, ends=timedelta(days=90)).write(tmp_path)
    token, ca = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("0123456789abcdef-token")
    ca.write_bytes(CA.cert)
    tls = ("--tls-cert", str(tmp_path / "tls.crt"), "--tls-key", str(tmp_path / "tls.key"))
    # One adapter of rank 16 and one of rank 8 fit, and three generations at a time.
    small = ("--adapter-memory", "32MiB", "--max-running", "3")
    server = start_server(state, *tls, "--metrics-tls", "--metrics-token", str(token), *small)
    try:
        target = server.metrics_url.removeprefix("https://").removesuffix("/metrics")
        with ExitStack() as open_:
            clients = {
                name: open_.enter_context(Client(f"https://{server.address}", ca_file=ca, api_key=key.text, timeout=60))
                for name, key in keys.items()
            }
            watching = open_.enter_context(prometheus(tmp_path, target, token, ca))
            yield Monitored(state, clients, watching)
    finally:
        kill(server)


def until(ready: Callable[[], bool], what: Callable[[], str], seconds: float = PATIENCE) -> None:
    """Ask again and again; fails with ``what`` after so many seconds."""
    never, end = threading.Event(), time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            pytest.fail(what())
        never.wait(0.5)


def make_trouble(monitored: Monitored) -> None:
    """A job that fails, and an adapter whose file is damaged when it is read."""
    bob = monitored.clients["bob"]
    with pytest.raises(loramux.JobFailed, match="changes nothing"):
        bob.train("dull", ROWS, rank=4, max_steps=1, gate="none", learning_rate=1e-44).wait(timeout=PATIENCE)
    copy = monitored.state.parent / "torn"
    shutil.copytree(shipped()[0], copy)
    config = copy / "adapter_config.json"
    config.write_text(config.read_text() + "\n")  # content of its own, or others would lose it too
    version = bob.adapters.upload("torn", copy)
    folder = monitored.state / "blobs" / "folders" / version.digest[:2] / version.digest
    flip_bit(folder / "adapter_model.safetensors")
    with pytest.raises(loramux.DataLoss):
        bob.adapters.download("torn", monitored.state / "down")


@dataclass(frozen=True)
class Question:
    """What Prometheus is asked, and whether 0 is an answer."""

    of: str
    expr: str
    zero_is_well: bool

    def is_answered(self, prometheus: Prometheus) -> bool:
        values = [float(series["value"][1]) for series in prometheus.query(self.expr)]
        known = [value for value in values if not math.isnan(value)]
        return any(value > 0 for value in known) or (bool(known) and self.zero_is_well)


def questions() -> Iterator[Question]:
    """Those of every panel, and what every rule records and every alert compares."""
    for query in queries():
        yield Question(str(query), plain(query.expr), query.panel in ZERO_IS_WELL)
    for rule in rules("recording.yml"):
        yield Question(rule["record"], rule["record"], zero_is_well=True)
    for rule in rules("alerts.yml"):
        # With `bool` a comparison that does not hold is 0 rather than nothing.
        compared = re.sub(r"( (?:==|>|<))(?= )", r"\1 bool", rule["expr"])
        yield Question(rule["alert"], compared, zero_is_well=True)


def test_no_panel_rule_or_alert_is_empty(monitored: Monitored) -> None:
    watching, clients = monitored.prometheus, monitored.clients
    for folder in shipped():
        clients["operator"].adapters.upload(folder.name, folder)
        clients["operator"].adapters.share(folder.name)
    until(watching.is_ready, lambda: "Prometheus does not start")
    # From here on what happens is an increase.
    until(lambda: bool(watching.query("loramux_corrupt_objects_total")), lambda: "nothing is scraped")
    began = time.time()
    make_trouble(monitored)
    with Load(clients).running():
        job = clients["ann"].train("hers", ROWS, rank=4, batch_size=2, max_steps=100_000, gate="none")
        unanswered = list(questions())

        def all_answered() -> bool:
            unanswered[:] = [each for each in unanswered if not each.is_answered(watching)]
            return not unanswered

        until(all_answered, lambda: f"nothing, or only 0, for {[each.of for each in unanswered]}")
        check_alerts(watching)
        check_variables(watching)
        if SCREENSHOTS:
            until(lambda: time.time() > began + LONG_ENOUGH, lambda: "time stands still", 2 * LONG_ENOUGH)
            draw(watching, began, time.time(), Path(SCREENSHOTS) / "dashboard.png")
        job.cancel()


def check_alerts(watching: Prometheus) -> None:
    """Those that must fire do, after rules that are all well."""
    broken = [rule for group in watching.get("rules")["groups"] for rule in group["rules"] if rule["health"] != "ok"]
    assert not broken
    alerts = watching.get("alerts")["alerts"]
    firing = {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}
    assert firing >= {"LoramuxJobFailed", "LoramuxCorruptObjects"}
    assert not firing & {"LoramuxInternalErrors", "LoramuxEngineRestarted", "LoramuxCertificateEnds"}


def check_variables(watching: Prometheus) -> None:
    """Grafana's lists hold those who did something."""
    lists = {}
    for name, query in VARIABLES.items():
        selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()  # type: ignore[union-attr]
        lists[name] = set(watching.get(f"label/{label}/values", **{"match[]": plain(selector)}))
    assert len(lists["instance"]) == 1
    assert lists["tenant"] >= set(TENANTS)
    assert lists["adapter"] >= {folder.name for folder in shipped()} | {"base"}
