"""A real Prometheus with the rules that the project ships, scraping one server every two seconds."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.server_process import free_port
from tests.monitoring import MONITORING

EVERY = "2s"
"""A scrape may take as long, and on a busy machine it does."""

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no Prometheus is installed (apt install prometheus)"
)


@dataclass(frozen=True)
class Prometheus:
    """A server that answers PromQL at ``url``."""

    url: str

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of a query as of now. Fails for one that Prometheus calls wrong."""
        return list(self.get("query", query=expr)["result"])

    def get(self, path: str, **values: str) -> Any:
        """What the API has at a path."""
        try:
            with urllib.request.urlopen(
                f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(values)}", timeout=30
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{path} {values}: {error.read().decode()}")

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                return True
        except OSError:
            return False


@contextmanager
def prometheus(folder: Path, target: str, token: Path, ca: Path) -> Iterator[Prometheus]:
    """Prometheus as ``prometheus.network.yml`` has it, for one server; what that file leaves to operators is given."""
    config = yaml.safe_load((MONITORING / "prometheus.network.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], EVERY)
    config["rule_files"] = [str(MONITORING / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["authorization"]["credentials_file"] = str(token)
    job["tls_config"] = {"ca_file": str(ca), "server_name": "localhost"}
    job["static_configs"] = [{"targets": [target]}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    words = [f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *words], stdout=log, stderr=log)
    try:
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(30)
