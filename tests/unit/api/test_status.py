"""The table from errors to statuses: complete, with details, and small enough to reach the caller."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import grpc
from google.rpc import error_details_pb2

import loramux_server
from loramux_server.api.status import to_status
from loramux_server.core.callers.quota import exceeded
from loramux_server.core.errors import Code, Error, FieldViolation, Reason, invalid, invalid_field
from loramux_server.rpc.interceptor import STATUS
from loramux_server.store.jobs.table import MAX_REASON

SERVER = Path(loramux_server.__file__).parent


def detail(status, kind):
    for packed in status.details:
        found = kind()
        if packed.Unpack(found):
            return found
    return None


def test_every_code_has_the_status_of_its_name() -> None:
    assert {code.name: status.name for code, status in STATUS.items()} == {code.name: code.name for code in Code}
    assert grpc.StatusCode.UNKNOWN not in STATUS.values()


def test_every_code_has_a_status_of_http() -> None:
    assert all(400 <= code.http < 600 for code in Code)
    assert (Code.NOT_FOUND.http, Code.RESOURCE_EXHAUSTED.http, Code.UNAVAILABLE.http) == (404, 429, 503)


def test_reasons_are_used_and_fit_their_column() -> None:
    sources = "".join(path.read_text() for path in SERVER.rglob("*.py") if path.name != "errors.py")
    own = set(get_args(Reason)) - {code.name for code in Code}
    elsewhere = {
        "ADAPTER_NOT_FOUND",
        "BLOB_DAMAGED",
        "BLOB_MISSING",
        "LOGITS_NOT_FINITE",
        "REPLICA_NOT_FOUND",
        "ROWS_DAMAGED",
        "SHUTTING_DOWN",
    }
    assert [r for r in own - elsewhere if f'"{r}"' not in sources and not r.startswith("GRAMMAR_")] == []
    assert {code.name for code in Code} <= set(get_args(Reason))
    assert max(map(len, get_args(Reason))) <= MAX_REASON


def test_reason_and_request_id() -> None:
    info = detail(to_status(Error(Code.NOT_FOUND, "no", reason="ADAPTER_NOT_FOUND"), "r1"), error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, info.metadata["request_id"]) == ("ADAPTER_NOT_FOUND", "loramux", "r1")


def test_fields_at_fault() -> None:
    status = to_status(invalid_field("adapters[1].weight", "is NaN"))
    bad = detail(status, error_details_pb2.BadRequest)
    assert [(v.field, v.description) for v in bad.field_violations] == [("adapters[1].weight", "is NaN")]
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert detail(status, error_details_pb2.RetryInfo) is None


def test_quota_and_retry() -> None:
    error = Error(
        Code.RESOURCE_EXHAUSTED, "full", violations=[FieldViolation("tenant:a", "too many")], retry_after=1.25
    )
    status = to_status(error)
    assert detail(status, error_details_pb2.RetryInfo).retry_delay.ToNanoseconds() == 1_250_000_000
    assert detail(status, error_details_pb2.QuotaFailure).violations[0].subject == "tenant:a"
    assert detail(status, error_details_pb2.BadRequest) is None


def test_a_quota_tells_programs_which_limit_and_its_value() -> None:
    failure = detail(to_status(exceeded("key:k1", "concurrent", 3, 3)), error_details_pb2.QuotaFailure)
    assert [(v.subject, v.quota_id, v.quota_value) for v in failure.violations] == [("key:k1", "concurrent", 3)]
    assert failure.violations[0].description == "concurrent is limited to 3: 3 in use, 1 more asked for"


def test_large_errors_are_cut_not_lost() -> None:
    error = invalid(FieldViolation(f"rows[{i}]", "é" * 5000) for i in range(5000))
    status = to_status(error, "r" * 128)
    assert 0 < status.ByteSize() < 5000
    assert status.message.endswith("...")
    assert detail(status, error_details_pb2.ErrorInfo).reason == "INVALID_ARGUMENT"
    assert detail(status, error_details_pb2.BadRequest).field_violations[0].field == "rows[0]"
    assert to_status(Error(Code.INTERNAL, "\ud800")).message == "?"
