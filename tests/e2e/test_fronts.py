"""Two servers over one Ray cluster and one database, and nginx before them."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from ssl import create_default_context

import pytest

from loramux import Client, NotFound, ResourceExhausted, Unauthenticated
from loramux_server.core.callers.principal import Scope
from loramux_server.store.quotas import QuotaTable
from tests.e2e.front_site import Site
from tests.e2e.ray_servers import PROMPT, START_SECONDS, ray_cluster, until
from tests.e2e.server_process import ServerProcess, free_port, kill
from tests.postgres import BIN, MISSING, open_postgres
from tests.tiny import write_adapter

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed"),
    pytest.mark.skipif(BIN is None, reason=MISSING),
]

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin")
BALANCERS = Path(__file__).parents[2] / "deploy/balancers"


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("site")
    with (
        open_postgres(tmp_path_factory.mktemp("pg")) as postgres,
        ray_cluster(home, 2) as cluster,
    ):
        yield Site(home, postgres.make_database("fronts"), cluster)


@pytest.fixture(scope="module")
def fronts(site: Site) -> Iterator[dict[str, ServerProcess]]:
    """Servers by name, started at the same moment; a test may end one and put another in its place."""
    servers: dict[str, ServerProcess] = {}

    def start(name: str) -> None:
        servers[name] = site.start(name)

    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(start, ("one", "two")))
        yield servers
    finally:
        for server in servers.values():
            kill(server)


@pytest.fixture(scope="module")
def base(site: Site) -> Path:
    from loramux_server.model.base.quantize import prepare_base

    return prepare_base(str(site.model), site.home / "nf4")


def replicas(client: Client) -> list[str]:
    return sorted(replica.id for replica in client.replicas())


def both_ready(client: Client) -> bool:
    return [replica.state for replica in client.replicas()] == ["ready", "ready"]


def test_fronts_share_replicas_and_adapters(site: Site, fronts: dict[str, ServerProcess], base: Path) -> None:
    with site.client(fronts["one"].address) as one, site.client(fronts["two"].address) as two:
        assert len(replicas(one)) == 2
        assert replicas(two) == replicas(one)
        one.adapters.upload("acme", write_adapter(site.home / "acme", base, seed=100))
        answers = (
            client.generate(PROMPT, adapters=["acme"], max_tokens=16, temperature=0.0, ignore_eos=True)
            for client in (one, two, two, one)
        )
        texts = {answer.text for answer in answers}
        assert len(texts) == 1
        # The second front knows from the replicas' reports which one holds the adapter.
        until(lambda: [sum(each.adapters for each in client.replicas()) for client in (one, two)] == [1, 1], 20)


def requests_left(site: Site, server: ServerProcess) -> int | None:
    """What the headers say that callers have left of their quota, asked without using it; None: there is no quota."""
    url = f"https://{server.http_address.removeprefix('https://')}/loramux.v1.ServerService/GetServerInfo"
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {site.admin.text}"}
    request = urllib.request.Request(url, b"{}", headers)
    context = create_default_context(cafile=str(site.ca_file))
    with urllib.request.urlopen(request, timeout=60, context=context) as answer:
        found = answer.headers["x-ratelimit-remaining-requests"]
    return None if found is None else int(found)


def call(client: Client, times: int) -> None:
    for _ in range(times):
        client.adapters.list()


def test_fronts_share_the_quota_of_a_tenant(site: Site, fronts: dict[str, ServerProcess]) -> None:
    quotas = QuotaTable(site.database)
    quotas.set("*", {"requests_per_minute": 20})
    with site.client(fronts["one"].address) as one, site.client(fronts["two"].address) as two:
        until(lambda: [requests_left(site, front) for front in fronts.values()] == [20, 20], 20)
        call(one, 20)
        until(lambda: (requests_left(site, fronts["two"]) or 0) <= 5, 10)
        with pytest.raises(ResourceExhausted) as refused:
            call(two, 20)
        assert refused.value.limit == "requests_per_minute"
        assert 0 < (refused.value.retry_after or 0) <= 3
    quotas.set("*", {"requests_per_minute": None})
    until(lambda: [requests_left(site, front) for front in fronts.values()] == [None, None], 20)


def says(client: Client, *adapters: str) -> str:
    """What is answered under a stack, always the same."""
    return client.generate(PROMPT, adapters=adapters, max_tokens=16, temperature=0.0, ignore_eos=True).text


def becomes(expected: str, ask: Callable[[], str], within: float) -> None:
    """From ``within`` seconds after now on, at the latest, requests that begin get the ``expected`` answer.

    Counted by when they begin, so that it does not matter how busy processors are.
    """
    acknowledged = time.monotonic()
    while True:
        began = time.monotonic() - acknowledged
        if (answer := ask()) == expected:
            return
        assert began < within, f"{answer!r} after {began:.2f} s"


def refusal(client: Client, *adapters: str) -> str:
    """The reason why a stack is refused, or what is answered under it."""
    try:
        return says(client, *adapters)
    except (NotFound, Unauthenticated) as error:
        return error.reason


@pytest.mark.parametrize("alias", ["", "live"])
def test_an_alias_moved_through_one_front_is_used_by_the_other(
    site: Site, fronts: dict[str, ServerProcess], base: Path, alias: str
) -> None:
    name = f"moving-{alias or 'bare'}"
    ref = f"{name}@{alias}" if alias else name
    with site.client(fronts["one"].address) as one, site.client(fronts["two"].address) as two:
        for seed in (201, 202):
            one.adapters.upload(name, write_adapter(site.home / f"{name}-{seed}", base, seed=seed))
        means = {version: says(two, f"{name}@{version}") for version in (1, 2)}
        assert len({*means.values(), says(two)}) == 3
        for version, mover, user in ((1, one, two), (2, one, two), (1, two, one), (2, two, one)):
            mover.adapters.set_alias(name, version, alias=alias)
            becomes(means[version], lambda user=user: says(user, ref), within=1.0)  # type: ignore[misc]


def test_what_one_front_deletes_the_other_does_not_find(
    site: Site, fronts: dict[str, ServerProcess], base: Path
) -> None:
    with site.client(fronts["one"].address) as one, site.client(fronts["two"].address) as two:
        for seed in (211, 212):
            one.adapters.upload("short", write_adapter(site.home / f"short-{seed}", base, seed=seed))
        means = {ref: says(two, ref) for ref in ("short@1", "short@2")}  # both are resident
        one.adapters.delete("short@1")
        becomes("ADAPTER_NOT_FOUND", lambda: refusal(two, "short@1"), within=1.0)
        assert says(two, "short") == means["short@2"]
        one.adapters.delete("short")
        becomes("ADAPTER_NOT_FOUND", lambda: refusal(two, "short"), within=1.0)
        assert refusal(two, "short@2") == "ADAPTER_NOT_FOUND"


def test_what_one_front_shares_tenants_of_the_other_use(
    site: Site, fronts: dict[str, ServerProcess], base: Path
) -> None:
    tenant = site.make_key("elsewhere", Scope.INFER)
    with site.client(fronts["one"].address) as one, site.client(fronts["two"].address, tenant) as theirs:
        one.adapters.upload("common", write_adapter(site.home / "common", base, seed=221))
        assert refusal(theirs, "common") == "ADAPTER_NOT_FOUND"
        one.adapters.share("common")
        becomes(says(one, "common"), lambda: refusal(theirs, "common"), within=1.0)
        one.adapters.unshare("common")
        becomes("ADAPTER_NOT_FOUND", lambda: refusal(theirs, "common"), within=1.0)


def test_a_revoked_key_opens_no_front(site: Site, fronts: dict[str, ServerProcess]) -> None:
    key = site.make_key("elsewhere", Scope.INFER)
    with site.client(fronts["one"].address, key) as one, site.client(fronts["two"].address, key) as two:
        streams = [client.stream(PROMPT, max_tokens=15_000, ignore_eos=True) for client in (one, two)]
        for stream in streams:
            next(iter(stream))
        site.keys.revoke(key.id)
        for client in (one, two):
            # Documented as 2 s, where processors have time.
            becomes("KEY_INVALID", lambda client=client: refusal(client), within=4.0)  # type: ignore[misc]
        for stream in streams:
            with pytest.raises(Unauthenticated):
                for _ in stream:
                    pass


def tiers(server: ServerProcess) -> dict[str, float]:
    """Where the adapters of all requests were when these came, over all replicas."""
    found = re.findall(r'^loramux_adapter_hits_total{tier="(\w+)"} (\S+)', server.metrics(), re.MULTILINE)
    return {tier: float(value) for tier, value in found}


def test_twenty_stacks_stay_where_they_are_resident(site: Site, fronts: dict[str, ServerProcess], base: Path) -> None:
    """Ten tenants under two styles, through both fronts, several at a time and in either order."""
    tenants, styles = [f"tenant-{i}" for i in range(10)], ["plain", "rhyme"]
    with site.client(fronts["one"].address) as one, site.client(fronts["two"].address) as two:
        for seed, name in enumerate((*tenants, *styles)):
            one.adapters.upload(name, write_adapter(site.home / name, base, rank=2, seed=seed))
        stacks = [[tenant, style] for tenant in tenants for style in styles]
        clients, chance = cycle((one, two)), random.Random(0)

        def ask(client: Client, stack: list[str]) -> None:
            client.generate(PROMPT, adapters=stack, max_tokens=4, ignore_eos=True)

        def round_of_requests() -> None:
            with ThreadPoolExecutor(4) as pool:
                shuffled = [chance.sample(stack, 2) for stack in chance.sample(stacks, len(stacks))]
                list(pool.map(ask, clients, shuffled))

        round_of_requests()
        before = tiers(fronts["one"])
        for _ in range(5):
            round_of_requests()
        after = tiers(fronts["one"])
        added = {tier: after[tier] - before.get(tier, 0) for tier in after}
        assert sum(added.values()) == 5 * 20 * 2, "each request counts each of its adapters"
        assert added["disk"] <= 0.1 * sum(added.values()), added
        held = sum(replica.adapters for replica in one.replicas())
        # The styles are wanted everywhere, the tenants are not.
        assert held <= 2 * len(styles) + 1.5 * len(tenants) + 1, held


def test_a_job_trains_whichever_front_took_it_in(site: Site, fronts: dict[str, ServerProcess]) -> None:
    """Any front takes it from the queue, and the replicas read its files from that front's folder."""
    data = [{"prompt": f"Number {i}: ", "completion": f"it is {i}."} for i in range(4)]
    with site.client(fronts["one"].address) as one, site.client(fronts["two"].address) as two:
        jobs = [client.train(f"job-{i}", data=data, max_steps=2) for i in range(2) for client in (one, two)]
        for job in jobs:
            version = job.wait()
            assert one.generate(PROMPT, adapters=[version.ref], max_tokens=2).text is not None


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt install nginx-light)")
def test_requests_go_through_nginx(site: Site, fronts: dict[str, ServerProcess], tmp_path: Path) -> None:
    """With the configuration in deploy/, of which only names, ports and folders are changed."""
    grpc_port, http_port = free_port(), free_port()
    text = (BALANCERS / "nginx.conf").read_text()
    changes = {
        "loramux-1:50051": fronts["one"].address,
        "loramux-2:50051": fronts["two"].address,
        "loramux-1:8000": fronts["one"].http_address.removeprefix("https://"),
        "loramux-2:8000": fronts["two"].http_address.removeprefix("https://"),
        "listen 50051": f"listen 127.0.0.1:{grpc_port}",
        "listen 8000": f"listen 127.0.0.1:{http_port}",
        "/etc/nginx/tls": str(site.home / "tls"),
        "/run/nginx.pid": str(tmp_path / "pid"),
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    config = tmp_path / "nginx.conf"
    config.write_text(text)
    assert NGINX is not None
    command = [NGINX, "-c", str(config), "-p", str(tmp_path), "-e", "stderr"]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "warn" not in checked.stderr
    nginx = subprocess.Popen([*command, "-g", "daemon off;"])
    try:
        with site.client(f"localhost:{grpc_port}") as client:
            until(lambda: listens(grpc_port), 20)
            assert client.health() == "SERVING"
            with client.stream(PROMPT, max_tokens=64, ignore_eos=True) as chunks:
                assert sum(1 for _ in chunks) > 1, "tokens came one by one"
            for _ in range(6):
                client.generate(PROMPT, max_tokens=2)
        body = {"model": "base", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8, "stream": True}
        request = urllib.request.Request(
            f"https://localhost:{http_port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {site.admin.text}"},
        )
        context = create_default_context(cafile=str(site.ca_file))
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            lines = answer.read().decode().splitlines()
        assert lines.count("data: [DONE]") == 1
    finally:
        nginx.send_signal(signal.SIGTERM)
        nginx.wait(20)


def test_a_front_that_has_not_heard_of_a_drain_sends_elsewhere(site: Site, fronts: dict[str, ServerProcess]) -> None:
    with site.client(fronts["one"].address) as one, site.client(fronts["two"].address) as two:
        drained = replicas(one)[0]
        one.drain_replica(drained)
        for _ in range(12):  # the reports of a drain take half a second
            assert two.generate(PROMPT, max_tokens=2, ignore_eos=True).usage.completion_tokens == 2
        until(lambda: drained not in replicas(two) and both_ready(two), START_SECONDS)


def test_a_front_that_is_killed_leaves_the_replicas_to_the_other_and_finds_them_again(
    site: Site, fronts: dict[str, ServerProcess]
) -> None:
    with site.client(fronts["two"].address) as two:
        until(lambda: both_ready(two), START_SECONDS)
        before = replicas(two)
        with site.client(fronts["one"].address) as one:
            stream = one.stream(PROMPT, max_tokens=15_000, ignore_eos=True)
            next(iter(stream))
            until(lambda: sum(each.requests_running for each in two.replicas()) == 1, 20)
            kill(fronts["one"])
        assert two.generate(PROMPT, max_tokens=4, ignore_eos=True).usage.completion_tokens == 4
        fronts["one"] = site.start("one")
        # What the killed front had asked for is over once its server is back.
        until(lambda: sum(each.requests_running for each in two.replicas()) == 0, 5)
        with site.client(fronts["one"].address) as one:
            assert replicas(one) == before


def test_the_last_front_that_stops_removes_the_replicas(site: Site, fronts: dict[str, ServerProcess]) -> None:
    for name, left in (("one", 2), ("two", 0)):
        fronts[name].process.send_signal(signal.SIGTERM)
        assert fronts[name].finish(90) == 0, "\n".join(fronts[name].lines)
        until(lambda left=left: len(site.cluster.processes("ray::ServeReplica")) == left, 30)  # type: ignore[misc]
    assert site.cluster.node.poll() is None, "the cluster is not the servers' to end"
