"""Two servers over one Ray cluster and one database, and nginx before them."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from ssl import create_default_context

import pytest

from loramux import Client, ResourceExhausted
from loramux_server.store.database import Database
from loramux_server.store.quotas import QuotaTable
from tests.certificates import LOOPBACK, new_ca
from tests.e2e.ray_servers import PROMPT, RayCluster, ray_cluster, until
from tests.e2e.server_process import ServerProcess, free_port, kill
from tests.postgres import BIN, MISSING, open_postgres
from tests.tiny import write_adapter, write_model

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


class Site:
    """What the servers share."""

    def __init__(self, home: Path, database: str, cluster: RayCluster) -> None:
        self.home, self.database, self.cluster = home, database, cluster
        self.model = write_model(home / "model", "llama", max_position_embeddings=20_000)
        self.ca = new_ca()
        (home / "tls").mkdir()
        self.cert, self.key = self.ca.issue("loramux", *LOOPBACK).write(home / "tls")
        self.ca_file = home / "tls" / "ca.crt"
        self.ca_file.write_bytes(self.ca.cert)
        self._flags = {
            "--backend": "ray",
            "--replicas": "2",
            "--ray-address": cluster.address,
            "--model": str(self.model),
            "--database-url": database,
            "--blobs-url": f"file://{home}/blobs",
            "--dtype": "float32",
            "--device": "cpu",
            "--threads": "1",
            "--kv-cache-memory": "64MiB",
            "--adapter-memory": "16MiB",
            "--http-listen": "127.0.0.1:0",
            "--metrics-listen": "127.0.0.1:0",
            "--tls-cert": str(self.cert),
            "--tls-key": str(self.key),
        }
        (home / "blobs").mkdir()

    def start(self, name: str) -> ServerProcess:
        """A front with a state directory of its own."""
        home = self.home / name
        home.mkdir(exist_ok=True)
        words = [word for pair in self._flags.items() for word in pair]
        server = ServerProcess(
            home, "--insecure", "--state-dir", str(home / "state"), *words, variables=self.cluster.variables
        )
        try:
            server.wait_for("is ready", 300)
        except BaseException:
            kill(server)
            raise
        return server

    @contextmanager
    def client(self, address: str) -> Iterator[Client]:
        with Client(address, ca_file=str(self.ca_file)) as client:
            yield client


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
    """Servers by name; a test may end one and put another in its place."""
    servers: dict[str, ServerProcess] = {}
    try:
        for name in ("one", "two"):
            servers[name] = site.start(name)
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
    request = urllib.request.Request(url, b"{}", {"Content-Type": "application/json"})
    context = create_default_context(cafile=str(site.ca_file))
    with urllib.request.urlopen(request, timeout=60, context=context) as answer:
        found = answer.headers["x-ratelimit-remaining-requests"]
    return None if found is None else int(found)


def call(client: Client, times: int) -> None:
    for _ in range(times):
        client.adapters.list()


def test_fronts_share_the_quota_of_a_tenant(site: Site, fronts: dict[str, ServerProcess]) -> None:
    database = Database.open(site.database)
    try:
        quotas = QuotaTable(database)
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
    finally:
        database.close()


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
            {"Content-Type": "application/json"},
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
        until(lambda: drained not in replicas(two) and [each.state for each in two.replicas()] == ["ready"] * 2)


def test_a_front_that_is_killed_leaves_the_replicas_to_the_other_and_finds_them_again(
    site: Site, fronts: dict[str, ServerProcess]
) -> None:
    with site.client(fronts["two"].address) as two:
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
