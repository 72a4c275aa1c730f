"""What the client answers: plain frozen values. Times are in seconds since 1970, 0 where there is none."""

from .adapters import Adapter, AdapterVersion, Composition, StackItem
from .datasets import Dataset, DatasetNote, DatasetProblem, DatasetReport, MarkedRow, MarkedText
from .inference import (
    AppliedAdapter,
    Choice,
    Chunk,
    Completion,
    Embeddings,
    Score,
    TokenLogprob,
    Tokens,
    TopLogprob,
    Usage,
)
from .jobs import FINAL_STATES, SETTLED_STATES, JobEvent, JobInfo, JudgedAnswer, JudgedRow
from .server import AdapterActivity, JobActivity, Latency, Profile, Replica, ServerInfo, ServerStats, TenantActivity
from .usage import UsageRow

__all__ = [
    "FINAL_STATES",
    "SETTLED_STATES",
    "Adapter",
    "AdapterActivity",
    "AdapterVersion",
    "AppliedAdapter",
    "Choice",
    "Chunk",
    "Completion",
    "Composition",
    "Dataset",
    "DatasetNote",
    "DatasetProblem",
    "DatasetReport",
    "Embeddings",
    "JobActivity",
    "JobEvent",
    "JobInfo",
    "JudgedAnswer",
    "JudgedRow",
    "Latency",
    "MarkedRow",
    "MarkedText",
    "Profile",
    "Replica",
    "Score",
    "ServerInfo",
    "ServerStats",
    "StackItem",
    "TenantActivity",
    "TokenLogprob",
    "Tokens",
    "TopLogprob",
    "Usage",
    "UsageRow",
]
