"""Errors of real calls."""

from __future__ import annotations

import inspect

import grpc
import pytest

import loramux
from loramux import Client, errors

from .fake import Fake, details, refuse


def failing(fake: Fake, code: grpc.StatusCode, message: str = "no", *more: object) -> None:
    fake.handlers["GenerateOnce"] = lambda _, context: refuse(context, code, message, *more)


def test_details_are_read(fake: Fake, client: Client) -> None:
    failing(fake, grpc.StatusCode.INVALID_ARGUMENT, "bad stack", *details())
    with pytest.raises(loramux.InvalidArgument) as caught:
        client.generate("hi")
    error = caught.value
    assert error.message == str(error) == "bad stack"
    assert error.reason == "BAD_STACK"
    assert error.violations == (loramux.Violation("adapters[1].weight", "is nan"),)
    assert error.retry_after == 1.5


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_every_status_has_its_class(fake: Fake, client: Client, code: grpc.StatusCode) -> None:
    failing(fake, code, "the message")
    with pytest.raises(loramux.LoramuxError) as caught:
        client.generate("hi", timeout=10)
    unnamed = {grpc.StatusCode.UNKNOWN: "INTERNAL", grpc.StatusCode.OUT_OF_RANGE: "INVALID_ARGUMENT"}
    assert caught.value.code == unnamed.get(code, code.name)
    assert caught.value.message == "the message"


def test_all_errors_are_exported() -> None:
    classes = {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.LoramuxError)
    }
    assert all(getattr(loramux, name) is value for name, value in classes.items())


def test_no_server_says_what_to_do() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(loramux.Unavailable, match="loramux serve") as caught:
        client.stream("hi").__next__()
    assert "127.0.0.1:1" in str(caught.value)


def test_unavailable_is_tried_again(fake: Fake, client: Client) -> None:
    def once(_: object, context: grpc.ServicerContext) -> None:
        if fake.count("GenerateOnce") < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "warming up")

    fake.handlers["GenerateOnce"] = once
    assert client.generate("hi").text == "answer 0"
    assert fake.count("GenerateOnce") == 3


def test_calls_that_must_not_be_doubled_are_not_tried_again(fake: Fake, client: Client) -> None:
    def never(_: object, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    fake.handlers["DeleteAdapter"] = never
    with pytest.raises(loramux.Unavailable):
        client.adapters.delete("acme")
    assert fake.count("DeleteAdapter") == 1


def test_a_timeout(fake: Fake, client: Client) -> None:
    fake.handlers["GenerateOnce"] = lambda _, context: fake.cancelled.wait(5) and None
    with pytest.raises(loramux.DeadlineExceeded):
        client.generate("hi", timeout=0.1)
    fake.cancelled.set()
