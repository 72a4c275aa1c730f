"""The client works without the server's packages, and offers exactly what it is meant to offer."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import loramux

HEAVY = ["torch", "transformers", "bitsandbytes", "accelerate", "tokenizers", "safetensors", "numpy", "sqlalchemy"]

IMPORT = f"""
import sys
heavy = {HEAVY}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in heavy + ["loramux_server"]:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocked())
import loramux, loramux.cli, loramux.progress
from loramux.v1 import adapters_pb2_grpc, inference_pb2_grpc, server_pb2_grpc, training_pb2_grpc
assert loramux.cli.main(["--version"]) == 0
loaded = sorted(set(heavy) & set(sys.modules))
assert not loaded, loaded
"""


def test_the_client_imports_with_torch_blocked() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("loramux ")


def test_importing_the_client_stays_light() -> None:
    code = "import sys, loramux; print([m for m in ('rich', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_exports() -> None:
    """A name that is added or taken away here is a change of the public interface."""
    assert sorted(loramux.__all__) == [
        "Aborted",
        "Adapter",
        "AdapterActivity",
        "AdapterVersion",
        "AlreadyExists",
        "AppliedAdapter",
        "AsyncClient",
        "AsyncCompletionStream",
        "AsyncJob",
        "Cancelled",
        "Choice",
        "Chunk",
        "Client",
        "Completion",
        "CompletionStream",
        "Composition",
        "DataLoss",
        "Dataset",
        "DatasetProblem",
        "DatasetReport",
        "DeadlineExceeded",
        "Embeddings",
        "FailedPrecondition",
        "InternalError",
        "InvalidArgument",
        "Job",
        "JobActivity",
        "JobEvent",
        "JobFailed",
        "JobInfo",
        "Latency",
        "LoramuxError",
        "MarkedRow",
        "MarkedText",
        "NotFound",
        "PermissionDenied",
        "Profile",
        "Replica",
        "ResourceExhausted",
        "Score",
        "ServerInfo",
        "ServerStats",
        "StackItem",
        "TenantActivity",
        "TokenLogprob",
        "Tokens",
        "TopLogprob",
        "Unauthenticated",
        "Unavailable",
        "Unimplemented",
        "Usage",
        "UsageRow",
        "Violation",
        "__version__",
    ]
    assert all(hasattr(loramux, name) for name in loramux.__all__)


def test_version_is_the_package_s() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())
    assert loramux.__version__ == project["project"]["version"]
