"""The audit log of a real server that is killed while it works: whatever was acknowledged is in it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from loramux.v1 import training_pb2 as pb
from loramux.v1 import training_pb2_grpc
from loramux_server.telemetry.audit.reading import read
from tests.e2e.server_process import server_process
from tests.tiny import write_model

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ENOUGH = 40


def messages(text: str) -> Iterator[pb.UploadDatasetRequest]:
    yield pb.UploadDatasetRequest(header=pb.UploadDatasetHeader(name="rows.jsonl"))
    yield pb.UploadDatasetRequest(chunk=f'{{"text": "{text}"}}\n'.encode())


def test_what_was_acknowledged_is_in_the_audit_log_after_a_kill(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "llama")
    flags = ("--model", str(tmp_path / "model"), "--state-dir", str(tmp_path / "state"), "--metrics-listen", "off")
    acknowledged: list[str] = []
    enough = threading.Event()

    def upload(stub: training_pb2_grpc.TrainingServiceStub, worker: int) -> None:
        number = 0
        try:
            while True:
                number += 1
                acknowledged.append(stub.UploadDataset(messages(f"{worker} {number}"), timeout=30).id)
                if len(acknowledged) >= ENOUGH:
                    enough.set()
        except grpc.RpcError:
            pass  # killed

    with server_process(tmp_path, *flags, "--device", "cpu", "--audit-size", "2000", "--audit-files", "1000") as server:
        server.wait_for("is ready")
        with grpc.insecure_channel(server.address) as channel:
            stub = training_pb2_grpc.TrainingServiceStub(channel)
            workers = [threading.Thread(target=upload, args=(stub, n)) for n in range(3)]
            for worker in workers:
                worker.start()
            assert enough.wait(60)
            server.process.send_signal(signal.SIGKILL)
            for worker in workers:
                worker.join()
    entries = [entry for entry in read(tmp_path / "state" / "audit" / "audit.jsonl") if entry is not None]
    assert set(acknowledged) <= {entry.object for entry in entries if entry.action == "UploadDataset"}
    assert len(list((tmp_path / "state" / "audit").iterdir())) > 3
