"""Limits on what a client can size, as settings; what no operator would want otherwise is fixed where it is used."""

from __future__ import annotations

from pydantic import BaseModel, ByteSize

from .fields import Size, setting

KIB, MIB = 1 << 10, 1 << 20


class LimitSettings(BaseModel):
    """The settings of the group "Limits", which lie at the root of the tree: ``--max-choices``."""

    max_prompt_size: Size = setting(
        ByteSize(MIB), "Limits", "SIZE", "longest prompt or conversation, tools included, in UTF-8", le=4 * MIB
    )
    max_tools_size: Size = setting(ByteSize(256 * KIB), "Limits", "SIZE", "longest tools of a request", le=4 * MIB)
    max_messages: int = setting(1024, "Limits", "N", "most messages of a conversation", ge=1, le=16_384)
    max_new_tokens: int = setting(
        32_768, "Limits", "N", "largest max_tokens that a request may name", ge=1, le=1_048_576
    )
    max_choices: int = setting(16, "Limits", "N", "most choices of one request", ge=1, le=1024)
    max_embed_inputs: int = setting(2048, "Limits", "N", "most texts of one request for embeddings", ge=1, le=16_384)
    max_logprobs: int = setting(20, "Limits", "N", "most alternatives in logprobs of a token", ge=0, le=1024)
    max_logit_bias: int = setting(1024, "Limits", "N", "most entries of logit_bias", ge=0, le=16_384)
    max_request_seconds: float = setting(
        600.0,
        "Limits",
        "SECONDS",
        "time for a generation or score that has no deadline, or a later one",
        gt=0,
        le=86_400,
        allow_inf_nan=False,
    )
    max_grammar_size: Size = setting(
        ByteSize(64 * KIB), "Limits", "SIZE", "longest schema, pattern or grammar of response_format", le=MIB
    )
    max_grammar_seconds: float = setting(
        2.0,
        "Limits",
        "SECONDS",
        "processor time that compiling a grammar may take",
        gt=0,
        le=60,
        allow_inf_nan=False,
    )
    max_grammar_memory: Size = setting(
        ByteSize(512 * MIB), "Limits", "SIZE", "memory of the process of a grammar", ge=64 * MIB
    )
    max_profile_seconds: float = setting(
        60.0, "Limits", "SECONDS", "longest profile of the engine", gt=0, le=3600, allow_inf_nan=False
    )
    max_profile_events: int = setting(
        200_000, "Limits", "N", "events kept of a profile of the engine", ge=1000, le=10_000_000
    )
    stall_timeout: float = setting(
        60.0,
        "Limits",
        "SECONDS",
        "time for a caller to take the next part of an answer, or to send the next part of a request",
        ge=1,
        le=86_400,
        allow_inf_nan=False,
    )
    grpc_max_message: Size = setting(
        ByteSize(8 * MIB), "Limits", "SIZE", "largest message of a gRPC request", ge=2 * MIB, le=64 * MIB
    )
    grpc_max_metadata: Size = setting(
        ByteSize(16 * KIB),
        "Limits",
        "SIZE",
        "metadata of a gRPC call; more is refused at random, and always from twice as much on",
        ge=4 * KIB,
        le=MIB,
    )
    grpc_keepalive_time: float = setting(
        30.0,
        "Limits",
        "SECONDS",
        "silence after which a gRPC client is asked whether it is still there",
        ge=1,
        le=86_400,
        allow_inf_nan=False,
    )
    grpc_keepalive_timeout: float = setting(
        20.0, "Limits", "SECONDS", "time for it to say so", ge=1, le=86_400, allow_inf_nan=False
    )
    http_max_body: Size = setting(
        ByteSize(8 * MIB), "Limits", "SIZE", "largest body of an HTTP request that is no upload", ge=MIB, le=64 * MIB
    )
    http_max_headers: Size = setting(
        ByteSize(32 * KIB), "Limits", "SIZE", "longest line and headers of an HTTP request", ge=4 * KIB, le=MIB
    )
    http_header_timeout: float = setting(
        20.0, "Limits", "SECONDS", "time for the headers of an HTTP request to come", ge=1, le=3600, allow_inf_nan=False
    )
    http_keepalive_timeout: int = setting(
        75, "Limits", "SECONDS", "longest silence between two requests of an HTTP connection", ge=1, le=86_400
    )
    http_max_connections: int = setting(
        4096, "Limits", "N", "HTTP connections at once; requests on more are refused", ge=1, le=1_000_000
    )
    max_upload_size: Size = setting(ByteSize(2048 * MIB), "Limits", "SIZE", "largest adapter folder that is taken")
    max_part_size: Size = setting(ByteSize(64 * MIB), "Limits", "SIZE", "largest part of a dataset that comes in parts")
    max_upload_parts: int = setting(1000, "Limits", "N", "most parts of a dataset", ge=1, le=100_000)
    max_pending_uploads: int = setting(
        16, "Limits", "N", "most datasets of a tenant that are coming in parts at once", ge=1, le=10_000
    )
    max_upload_seconds: float = setting(
        3600.0,
        "Limits",
        "SECONDS",
        "time for all parts of a dataset to come; what is not completed then is dropped",
        gt=0,
        le=86_400,
        allow_inf_nan=False,
    )
    max_rank: int = setting(256, "Limits", "N", "largest rank that is trained, merged or uploaded", ge=1, le=4096)
    max_epochs: float = setting(
        1000.0, "Limits", "N", "most passes of a training job over its rows", gt=0, le=1_000_000, allow_inf_nan=False
    )
    max_steps: int = setting(1_000_000, "Limits", "N", "most steps of a training job", ge=1, le=2**31 - 1)
    max_job_events: int = setting(
        100_000, "Limits", "N", "events kept of a training job; the oldest go first", ge=100, le=2**31 - 1
    )
    max_batch_size: int = setting(1024, "Limits", "N", "most rows of a training step", ge=1, le=65_536)
