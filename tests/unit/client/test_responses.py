"""Values of the client against the messages that they are read from."""

from __future__ import annotations

from dataclasses import fields

import pytest

from loramux import types
from loramux.v1 import adapters_pb2, inference_pb2, server_pb2, training_pb2


@pytest.mark.parametrize(
    ("kind", "message", "elsewhere"),
    [
        (types.Adapter, adapters_pb2.Adapter, set()),
        (types.AdapterVersion, adapters_pb2.AdapterVersion, set()),
        (types.Composition, adapters_pb2.Composition, set()),
        (types.Dataset, training_pb2.Dataset, set()),
        (types.DatasetReport, training_pb2.ValidateDatasetResponse, {"summary"}),
        (types.DatasetReport, training_pb2.DatasetSummary, set()),
        (types.DatasetProblem, training_pb2.DatasetProblem, set()),
        (types.JobInfo, training_pb2.Job, set()),
        (types.JobEvent, training_pb2.JobEvent, set()),
        (types.Chunk, inference_pb2.GenerateResponse, set()),
        (types.Completion, inference_pb2.GenerateResult, set()),
        (types.ServerInfo, server_pb2.ServerInfo, {"base", "tokenizer", "caller"}),
        (types.ServerInfo, server_pb2.Caller, set()),
    ],
)
def test_a_value_has_every_field_of_its_message(kind: type, message: type, elsewhere: set[str]) -> None:
    missing = set(message.DESCRIPTOR.fields_by_name) - {field.name for field in fields(kind)}  # type: ignore[attr-defined]
    assert missing == elsewhere
