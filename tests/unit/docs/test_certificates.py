"""The certificates that the page on operations tells how to make are ones that server and client take."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from loramux import Client
from loramux_server.host.certificates import read_certificate
from tests.unit.client.fake import Fake, start
from tests.unit.docs.markdown import ROOT, blocks


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_trial_certificates(tmp_path: Path) -> None:
    (block,) = [block for block in blocks(ROOT / "docs" / "operations.md") if block.mark == "test: openssl"]
    subprocess.run(["sh", "-euc", block.text], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    found = read_certificate(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt")
    server = start(fake := Fake(), grpc.ssl_server_credentials([(found.key, found.chain)]))
    try:
        with Client(fake.address, ca_file=tmp_path / "ca.crt") as client:
            assert client.info().version == "9.9"
    finally:
        server.stop(grace=None).wait()
