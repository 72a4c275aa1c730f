"""Addresses."""

from __future__ import annotations

import pytest

from loramux import InvalidArgument
from loramux._channel import target


@pytest.mark.parametrize(
    ("address", "expected", "secure"),
    [
        (None, "localhost:50051", False),
        ("", "localhost:50051", False),
        ("gpu:7000", "gpu:7000", False),
        ("gpu", "gpu:50051", False),
        ("http://gpu:7000", "gpu:7000", False),
        ("https://gpu.example", "gpu.example:50051", True),
        ("grpcs://gpu.example:443/", "gpu.example:443", True),
        ("[::1]:7000", "[::1]:7000", False),
        ("unix:/run/loramux.sock", "unix:/run/loramux.sock", False),
        ("dns:///gpu:7000", "dns:///gpu:7000", False),
    ],
)
def test_addresses(address: str | None, expected: str, secure: bool) -> None:
    found = target(address, None)
    assert (found.address, found.credentials is not None) == (expected, secure)


@pytest.mark.parametrize("address", ["foo://x", "a:b", "a:99999", "://", "a/b", "http://", "me@host:1", ":50051"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InvalidArgument, match="address"):
        target(address, None)
