"""loramux: many LoRA adapters over one base model, served and trained side by side. This is its client.

from loramux import Client

with Client("localhost:50051") as client:
print(client.generate("What does Acme sell?", adapters=["acme"]).text)
"""

from importlib.metadata import PackageNotFoundError, version

from ._aio_resources import AsyncJob
from ._resources import Job
from .aio import AsyncClient, AsyncCompletionStream
from .client import Client, CompletionStream
from .errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    JobFailed,
    LoramuxError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
)
from .types import (
    Adapter,
    AdapterVersion,
    AppliedAdapter,
    Choice,
    Chunk,
    Completion,
    Composition,
    Dataset,
    DatasetProblem,
    DatasetReport,
    JobEvent,
    JobInfo,
    MarkedRow,
    MarkedText,
    Score,
    ServerInfo,
    StackItem,
    TokenLogprob,
    Tokens,
    TopLogprob,
    Usage,
)

try:
    __version__ = version("loramux")
except PackageNotFoundError:  # the folder is used without being installed
    __version__ = "0+unknown"

__all__ = [
    "Aborted",
    "Adapter",
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
    "FailedPrecondition",
    "InternalError",
    "InvalidArgument",
    "Job",
    "JobEvent",
    "JobFailed",
    "JobInfo",
    "LoramuxError",
    "MarkedRow",
    "MarkedText",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "Score",
    "ServerInfo",
    "StackItem",
    "TokenLogprob",
    "Tokens",
    "TopLogprob",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Usage",
    "Violation",
    "__version__",
]
