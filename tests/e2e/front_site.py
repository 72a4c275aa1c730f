"""Several servers with one database, one place for files and one Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loramux import Client
from loramux_server.core.callers.keys import ApiKey
from loramux_server.core.callers.principal import Scope
from loramux_server.store.database import Database
from loramux_server.store.keys import KeyTable
from tests.certificates import LOOPBACK, new_ca
from tests.e2e.ray_servers import START_SECONDS, RayCluster
from tests.e2e.server_process import ServerProcess, kill
from tests.tiny import write_model


class Site:
    """What the servers share."""

    def __init__(self, home: Path, database: str, cluster: RayCluster) -> None:
        self.home, self.cluster = home, cluster
        self.database = Database.open(database)
        self.keys = KeyTable(self.database)
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
        self.admin = self.make_key("default", *Scope)

    def make_key(self, tenant: str, *scopes: Scope) -> ApiKey:
        """A key that every front knows."""
        key = ApiKey.generate()
        self.keys.create(key, tenant, scopes)
        return key

    def start(self, name: str) -> ServerProcess:
        """A front with a state directory of its own."""
        home = self.home / name
        home.mkdir(exist_ok=True)
        words = [word for pair in self._flags.items() for word in pair]
        server = ServerProcess(home, "--state-dir", str(home / "state"), *words, variables=self.cluster.variables)
        try:
            server.wait_for("is ready", START_SECONDS)
        except BaseException:
            kill(server)
            raise
        return server

    @contextmanager
    def client(self, address: str, key: ApiKey | None = None) -> Iterator[Client]:
        """A client of a front, of the default tenant and its administrator where no key is given."""
        with Client(address, ca_file=str(self.ca_file), api_key=(key or self.admin).text) as client:
            yield client
