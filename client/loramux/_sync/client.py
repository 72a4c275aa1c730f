# Generated from _async/client.py by tools/sync_client.py (make client); do not edit.
"""Client and stream of an answer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Unpack

from .._wire.assemble import Assembler
from .._wire.connection.channel import target
from .._wire.connection.tls import File
from .._wire.documents import Documents
from .._wire.files import Data
from .._wire.io_sync import blocking
from .._wire.messages import requests, responses
from .._wire.messages.fields import filled
from .._wire.messages.requests import ChatMessage, Day, GenerateOptions
from .._wire.messages.stacks import Adapters as Stack
from .._wire.messages.train_requests import Gate, TrainOptions
from .._wire.profile_file import ProfileWriter
from ..convert import As
from ..types import Chunk, Completion, Embeddings, Profile, Replica, Score, ServerInfo, ServerStats, Tokens, UsageRow
from ..v1 import inference_pb2, server_pb2
from .adapters import Adapters
from .datasets import Datasets
from .jobs import Job, Jobs
from .transport import Stream, Transport


class Client:
    """A connection to a loramux server, for use from ordinary (not async) code; safe to share between threads.

    ``address`` is ``host:port`` (``https://host:port`` for TLS); what is not given comes from ``LORAMUX_ADDRESS`` and
    ``LORAMUX_API_KEY``. ``timeout`` (seconds) is for calls that do not bring their own; None: no limit.
    Nothing is sent before the first call. Every failure is a :class:`loramux.LoramuxError`.

    With TLS, ``ca_file`` names the CAs to trust (in PEM; none: those that gRPC brings), ``cert_file`` and ``key_file``
    the certificate to show where the server asks for one, ``server_name`` the name in the server's certificate if it is
    not the address's; ``LORAMUX_CA_FILE`` and so on stand for them. A key that would cross a network in plain text is
    InvalidArgument, unless ``http://`` or ``tls=False`` says that it may.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = None,
        tls: bool | None = None,
        ca_file: File = None,
        cert_file: File = None,
        key_file: File = None,
        server_name: str | None = None,
        root_certificates: bytes | None = None,
    ) -> None:
        where = target(
            address,
            api_key,
            tls,
            root_certificates,
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            server_name=server_name,
        )
        self._transport = Transport(where, timeout)
        self.adapters = Adapters(self._transport)
        self.datasets = Datasets(self._transport)
        self.jobs = Jobs(self._transport)

    @property
    def address(self) -> str:
        """Where it connects to."""
        return self._transport.target.address

    def close(self) -> None:
        """Close the connection; calls that run are cancelled."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Iterable[ChatMessage] | None = None,
        adapters: Stack | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Answer a plain prompt or a chat with a stack of adapters (none: the base).

        ``adapters`` is ``["acme"]``, ``{"acme": 1.0, "formal": 0.5}`` or ``[("acme", 1.0), "formal@3"]``. The other
        options (max_tokens, temperature, top_p, top_k, min_p, seed, stop, n, repetition_penalty, logprobs,
        response_format, ...) take the server's defaults when left out: greedy, 128 tokens.

        ``messages`` that end with an assistant's turn need ``continue_final_message=True``: the answer then goes on
        writing that turn. They are dicts as OpenAI has them, with ``tool_calls``, ``tool_call_id`` and ``name`` where
        tools are used. ``tools`` (a list of schemas) and ``chat_template_kwargs`` (such as
        ``{"enable_thinking": False}``) go to the model's chat template, as they do in training rows.
        ``tool_choice="required"``, or ``{"type": "function", "function": {"name": ...}}``, makes the answer calls of
        them and nothing else; ``parallel_tool_calls=False`` makes it one.
        """
        request = requests.generate(prompt, messages, adapters, options)
        return responses.completion(self._transport.unary(self._transport.inference.GenerateOnce, request, timeout))

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Iterable[ChatMessage] | None = None,
        adapters: Stack | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> CompletionStream:
        """As ``generate``, but the answer comes in pieces as it is made. Leaving the loop early stops the server."""
        request = requests.generate(prompt, messages, adapters, options)
        method = self._transport.inference.Generate
        return CompletionStream(self._transport.stream(method, request, timeout or self._transport.timeout))

    def score(
        self,
        prompt: str | None = None,
        continuation: str = "",
        *,
        messages: Iterable[ChatMessage] | None = None,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        adapters: Stack | None = None,
        timeout: float | None = None,
    ) -> Score:
        """Log-probability of each token of ``continuation`` after a prompt or chat."""
        request = requests.score(
            prompt, messages, continuation, adapters, continue_final_message, tools, chat_template_kwargs
        )
        return responses.score(self._transport.unary(self._transport.inference.Score, request, timeout))

    def embed(
        self,
        input: str | Iterable[str | Sequence[int]],
        *,
        adapters: Stack | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        timeout: float | None = None,
    ) -> Embeddings:
        """Embeddings of a text or several, each a text or a list of token ids, with a stack of adapters.

        ``pooling`` is ``"mean"`` (the default) or ``"last"``, of the hidden states after the final norm. They are of
        length 1 unless ``normalize`` is False, and have as many ``dimensions`` as the base.
        """
        request = requests.embed(input, adapters, pooling, normalize, dimensions)
        return responses.embeddings(self._transport.unary(self._transport.inference.Embed, request, timeout))

    def tokenize(
        self,
        prompt: str | None = None,
        *,
        messages: Iterable[ChatMessage] | None = None,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Tokens:
        """The tokens that a prompt or chat becomes."""
        request = requests.tokenize(prompt, messages, continue_final_message, tools, chat_template_kwargs)
        return responses.tokens(self._transport.unary(self._transport.inference.Tokenize, request, timeout))

    def train(
        self,
        name: str,
        data: Data,
        *,
        validation: Data | None = None,
        replay: Data | None = None,
        on_top_of: Stack | Sequence[Stack] | None = None,
        init_from: str | None = None,
        gate: Gate | None = None,
        compare_prompt: str | None = None,
        compare_documents: Documents | None = None,
        compare_top_k: int | None = None,
        recipe: str | None = None,
        as_: As | None = None,
        metadata: dict[str, str] | None = None,
        idempotency_key: str | None = None,
        **settings: Unpack[TrainOptions],
    ) -> Job:
        """Upload ``data`` and start training the next version of adapter ``name``; gives a handle at once.

        ``data`` is the path of a file (.jsonl, .json, .csv, .tsv, .parquet) or a list of rows: ``{"messages": [...]}``,
        ``{"prompt": ..., "completion": ...}``, ``{"text": ...}``, or preference pairs ``{"prompt": ..., "chosen": ...,
        "rejected": ...}``, which are trained on by DPO. With ``context`` the adapter learns to answer without it as the
        base does with it (``method="distill"``); rows may then be prompts alone, and have a ``context`` of their own.
        ``replay`` is general rows of which some (``replay_rows``, 32) are mixed in; ``"default"`` are the server's, and
        the recipe ``"facts"`` takes them unless ``replay_rows`` is 0.
        ``on_top_of`` is one frozen stack (``["acme"]``) or several that rows take turns over
        (``[{"pine": 1.3}, ["summit"], []]``). The other settings (rank, alpha, learning_rate, epochs, max_steps,
        batch_size, target_modules, layers, seed, ...) take the server's defaults when left out; the learning rate is
        then chosen for the size of the base.

        Held-out rows are ``validation``, or a ``validation_split`` of the data; those that are training rows are not
        measured. Where there are others, the name moves to the result only if its loss on them is the lowest
        (``gate="improves"``, the default there); ``{"min_accuracy": 0.9}`` looks at answers, ``"none"`` at nothing.
        A result that does not pass is kept as a candidate, and ``job.info.gate_result`` says why. A row's ``expect``
        says what an answer must say to count. ``init_from`` is a version to go on from.

        ``recipe`` is ``"facts"`` or ``"style"``: settings that were measured to work, for all that is left out. With
        ``compare_prompt``, a system prompt or context, the held-out rows are also asked of the base and of the base
        with that prompt, and ``job.info.comparison`` tells whether training was worth it.

        ``compare_documents`` is a file or folder of text, Markdown and JSON lines (``{"text": ...}``), or a list of
        texts: the rows are then also asked of the base and of the adapter with ``compare_top_k`` passages (3) before
        them, which BM25 finds there.

        ``as_="messages"`` turns prompt + completion rows into conversations first (and takes other tools' formats, as
        ``loramux.convert`` does), ``as_="prompt"`` conversations of one question into plain prompts.

        The same ``idempotency_key`` gives the same job.
        """
        return self.jobs.create(
            name,
            data,
            validation=validation,
            replay=replay,
            on_top_of=on_top_of,
            init_from=init_from,
            gate=gate,
            compare_prompt=compare_prompt,
            compare_documents=compare_documents,
            compare_top_k=compare_top_k,
            recipe=recipe,
            as_=as_,
            metadata=metadata,
            idempotency_key=idempotency_key,
            **settings,
        )

    def info(self, *, timeout: float | None = None) -> ServerInfo:
        """What the server is and has."""
        method = self._transport.server.GetServerInfo
        return responses.server_info(self._transport.unary(method, server_pb2.GetServerInfoRequest(), timeout))

    def stats(self, window_seconds: int = 0, *, timeout: float | None = None) -> ServerStats:
        """What the server did in the last seconds (0: 10, at most 60), without Prometheus.

        A key without the scope ``admin`` is told of its own tenant alone.
        """
        request = server_pb2.GetStatsRequest(window_seconds=window_seconds)
        return responses.server_stats(self._transport.unary(self._transport.server.GetStats, request, timeout))

    def usage(
        self,
        since: Day | None = None,
        until: Day | None = None,
        *,
        group_by: str | Iterable[str] | None = None,
        tenant: str = "",
        adapter: str = "",
        limit: int | None = None,
    ) -> list[UsageRow]:
        """What was used from the day ``since`` (of UTC; None: the first of this month) up to today.

        ``until`` is the first day that is left out, at most 366 days later. ``group_by`` names dimensions: day,
        tenant, adapter, method; None: the first three. ``adapter`` also finds stacks with it. A key without the scope
        ``admin`` is told of its own tenant alone.
        """
        request = requests.usage(since, until, group_by, tenant, adapter)
        found = self._transport.items(self._transport.usage.GetUsage, request, "rows", limit)
        return [responses.usage_row(message) for message in found]

    def replicas(self, *, timeout: float | None = None) -> list[Replica]:
        """The engines behind the server, by id, and what each of them does. Needs the scope ``admin``."""
        request = server_pb2.ListReplicasRequest()
        found = self._transport.unary(self._transport.server.ListReplicas, request, timeout)
        return [responses.replica(message) for message in found.replicas]

    def drain_replica(self, id: str, *, timeout: float | None = None) -> None:
        """Give a replica no new work: it finishes its requests, hands its jobs back, and another takes its place.

        Needs the scope ``admin``. Raises NotFound for an unknown id, FailedPrecondition for a server's only engine.
        """
        request = server_pb2.DrainReplicaRequest(id=id)
        self._transport.unary(self._transport.server.DrainReplica, request, timeout)

    def profile(
        self, path: str | os.PathLike[str], seconds: float = 0, *, kernels: bool = True, timeout: float | None = None
    ) -> Profile:
        """Record what the engine does for ``seconds`` (0: 10) and write that to a file, which is replaced.

        The file is a Chrome trace, compressed with gzip: open it at https://ui.perfetto.dev. Requests and jobs go on
        meanwhile, a little slower; without ``kernels``, the operators and kernels of the model, hardly so. Needs the
        scope ``admin``. Raises ResourceExhausted while another profile is taken.
        """
        request = filled(server_pb2.ProfileEngineRequest(without_kernels=not kernels), seconds=seconds)
        method = self._transport.server.ProfileEngine
        with ProfileWriter(path) as writer:
            for message in self._transport.stream(method, request, timeout):
                blocking(writer.write, message)
            return writer.finish()

    def health(self, service: str = "", *, timeout: float = 5.0) -> str:
        """``SERVING`` or ``NOT_SERVING`` in the words of grpc.health.v1; Unavailable when nothing answers.

        ``service`` is one of the API's services, empty for all of them (readiness), or ``liveness``: whether the
        process lives, also while it starts, restarts its engine or stops.
        """
        return self._transport.health(service, timeout)


class CompletionStream:
    """The chunks of an answer. Use it in a ``for`` loop, best in a ``with`` block.

    Closing it stops the server.
    """

    def __init__(self, messages: Stream[inference_pb2.GenerateResponse]) -> None:
        self._messages = messages
        self._assembler = Assembler()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        chunk = responses.chunk(next(self._messages))
        self._assembler.add(chunk)
        return chunk

    @property
    def completion(self) -> Completion:
        """The answer as far as it was read."""
        return self._assembler.completion()

    def close(self) -> None:
        self._messages.close()

    def __enter__(self) -> CompletionStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
