"""Paths of the HTTP door and what answers them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from ..api.methods import methods_of
from ..core.errors import Code, Error
from ..services.access.methods import METHODS as ASKED
from ..services.availability import Availability
from ..services.common.calls import Calls
from ..telemetry.endpoint import FOR_ROUTERS
from .anthropic.errors import ANTHROPIC
from .anthropic.messages import Messages
from .console.files import ConsoleFiles
from .description.describe import describe
from .description.openapi import Operation, document
from .exchanges.endpoint import Endpoint, Handler, refuse
from .exchanges.errors import OPENAI, Convention
from .exchanges.exchange import Exchange
from .exchanges.limits import Limits
from .health import Health
from .metrics import MetricsPage
from .native.calls import NativeCall
from .native.errors import CONNECT
from .openai.chat import ChatCompletions
from .openai.completions import Completions
from .openai.embeddings import EmbeddingsOf
from .openai.loading import LoadedFolders
from .openai.models import Models
from .openai.responses.responses import Responses
from .openai.tuning.files import Files
from .openai.tuning.jobs import FineTuningJobs
from .openai.tuning.uploads import Uploads
from .openai.usage import UsageOf

METHODS = {
    "createChatCompletion": ("POST", "/v1/chat/completions"),
    "createCompletion": ("POST", "/v1/completions"),
    "createEmbedding": ("POST", "/v1/embeddings"),
    "createResponse": ("POST", "/v1/responses"),
    "countInputTokens": ("POST", "/v1/responses/input_tokens"),
    "compactConversation": ("POST", "/v1/responses/compact"),
    "getResponse": ("GET", "/v1/responses/{response_id}"),
    "deleteResponse": ("DELETE", "/v1/responses/{response_id}"),
    "cancelResponse": ("POST", "/v1/responses/{response_id}/cancel"),
    "listInputItems": ("GET", "/v1/responses/{response_id}/input_items"),
    "createMessage": ("POST", "/v1/messages"),
    "countMessageTokens": ("POST", "/v1/messages/count_tokens"),
    "listModels": ("GET", "/v1/models"),
    "retrieveModel": ("GET", "/v1/models/{model:path}"),
    "deleteModel": ("DELETE", "/v1/models/{model:path}"),
    "listLoraAdapters": ("GET", "/lora-adapters"),
    "loadLoraAdapter": ("POST", "/v1/load_lora_adapter"),
    "unloadLoraAdapter": ("POST", "/v1/unload_lora_adapter"),
    "createFile": ("POST", "/v1/files"),
    "listFiles": ("GET", "/v1/files"),
    "retrieveFile": ("GET", "/v1/files/{file_id}"),
    "deleteFile": ("DELETE", "/v1/files/{file_id}"),
    "downloadFile": ("GET", "/v1/files/{file_id}/content"),
    "createUpload": ("POST", "/v1/uploads"),
    "addUploadPart": ("POST", "/v1/uploads/{upload_id}/parts"),
    "completeUpload": ("POST", "/v1/uploads/{upload_id}/complete"),
    "cancelUpload": ("POST", "/v1/uploads/{upload_id}/cancel"),
    "createFineTuningJob": ("POST", "/v1/fine_tuning/jobs"),
    "listPaginatedFineTuningJobs": ("GET", "/v1/fine_tuning/jobs"),
    "retrieveFineTuningJob": ("GET", "/v1/fine_tuning/jobs/{job_id}"),
    "listFineTuningEvents": ("GET", "/v1/fine_tuning/jobs/{job_id}/events"),
    "listFineTuningJobCheckpoints": ("GET", "/v1/fine_tuning/jobs/{job_id}/checkpoints"),
    "cancelFineTuningJob": ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel"),
    "pauseFineTuningJob": ("POST", "/v1/fine_tuning/jobs/{job_id}/pause"),
    "resumeFineTuningJob": ("POST", "/v1/fine_tuning/jobs/{job_id}/resume"),
    "usage-completions": ("GET", "/v1/organization/usage/completions"),
    "usage-embeddings": ("GET", "/v1/organization/usage/embeddings"),
}
"""Operations by the names that the makers of their APIs give them.

A new one has its line here, its handler below, its scope in ``services/access/methods.py``, and what it takes and gives
in ``@describe`` above its handler; ``/openapi.json`` follows.
"""
OPEN = {
    "getHealth": "/health",
    "getReadiness": "/health/ready",
    "getLiveness": "/health/live",
    "getVersion": "/version",
    "getOpenapi": "/openapi.json",
}
"""What anybody may get, by operation. It tells nothing about tenants."""
OF_ANTHROPIC = ("createMessage", "countMessageTokens")
"""Operations of Anthropic's API; all others are OpenAI's."""


def full_name(operation: str) -> str:
    """The operation in the table of methods."""
    return f"{'anthropic' if operation in OF_ANTHROPIC else 'openai'}.v1/{operation}"


class Application:
    """The door as an ASGI application."""

    def __init__(
        self,
        availability: Availability,
        calls: Calls,
        limits: Limits,
        *,
        console: bool,
        metrics: MetricsPage | None = None,
    ) -> None:
        self._availability = availability
        self._limits = limits
        self.health = Health(availability)
        chat, texts, models = ChatCompletions(availability), Completions(availability), Models(availability)
        responses = Responses(availability)
        messages = Messages(availability)
        files, uploads, jobs = Files(availability), Uploads(availability), FineTuningJobs(availability)
        folders, usage = LoadedFolders(availability), UsageOf(availability)
        handlers: dict[str, Handler] = {
            "createChatCompletion": chat.create,
            "createCompletion": texts.create,
            "createEmbedding": EmbeddingsOf(availability).create,
            "createResponse": responses.create,
            "countInputTokens": responses.count,
            "compactConversation": responses.compact,
            "getResponse": responses.absent,
            "deleteResponse": responses.absent,
            "cancelResponse": responses.absent,
            "listInputItems": responses.absent,
            "createMessage": messages.create,
            "countMessageTokens": messages.count_tokens,
            "listModels": models.list,
            "listLoraAdapters": models.scales,
            "retrieveModel": models.retrieve,
            "deleteModel": models.delete,
            "loadLoraAdapter": folders.load,
            "unloadLoraAdapter": folders.unload,
            "createFile": files.create,
            "listFiles": files.list,
            "retrieveFile": files.retrieve,
            "deleteFile": files.delete,
            "downloadFile": files.content,
            "createUpload": uploads.create,
            "addUploadPart": uploads.add_part,
            "completeUpload": uploads.complete,
            "cancelUpload": uploads.cancel,
            "createFineTuningJob": jobs.create,
            "listPaginatedFineTuningJobs": jobs.list,
            "retrieveFineTuningJob": jobs.retrieve,
            "listFineTuningEvents": jobs.events,
            "listFineTuningJobCheckpoints": jobs.checkpoints,
            "cancelFineTuningJob": jobs.cancel,
            "pauseFineTuningJob": jobs.pause,
            "resumeFineTuningJob": jobs.resume,
            "usage-completions": usage.completions,
            "usage-embeddings": usage.embeddings,
        }
        applications: dict[str, dict[str, ASGIApp]] = {}
        conventions: dict[str, Convention] = {}
        for operation, (method, path) in METHODS.items():
            conventions[path] = ANTHROPIC if operation in OF_ANTHROPIC else OPENAI
            endpoint = Endpoint(full_name(operation), path, handlers[operation], calls, limits, conventions[path])
            applications.setdefault(path, {})[method] = endpoint
        open_handlers: dict[str, Handler] = {
            "getHealth": self.health.ready,
            "getReadiness": self.health.ready,
            "getLiveness": self.health.live,
            "getVersion": self.health.version,
            "getOpenapi": self._openapi,
        }
        for operation, path in OPEN.items():
            applications[path] = {"GET": _Open(open_handlers[operation], limits, calls)}
        self._operations = [
            *(Operation(id, *METHODS[id], handlers[id], ASKED[full_name(id)]) for id in METHODS),
            *(Operation(id, "GET", OPEN[id], open_handlers[id], None) for id in OPEN),
        ]
        self._native = methods_of(availability)
        for native in self._native:
            call = NativeCall(native, availability)
            path = f"/{native.full_name}"
            applications[path] = {"POST": Endpoint(native.full_name, path, call.answer, calls, limits, CONNECT)}
        if metrics is not None:
            applications["/metrics"] = {"GET": _Open(metrics.send, limits, calls)}
            applications[FOR_ROUTERS] = {"GET": _Open(metrics.send_for_routers, limits, calls)}
        if console:
            console_files = ConsoleFiles()
            page = _Open(console_files.send, limits, calls)
            applications |= {path: {"GET": page, "HEAD": page} for path in console_files}
        routes = [
            Route(path, _ByMethod(by_method, limits, calls, conventions.get(path, OPENAI)))
            for path, by_method in applications.items()
        ]
        self._router = Router(routes, redirect_slashes=False, default=_Open(self._unknown, limits, calls))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._router(scope, receive, send)

    @describe(answer=dict[str, Any])
    async def _openapi(self, exchange: Exchange) -> None:
        """OpenAPI's document of this door."""
        await exchange.send_json(self.openapi)

    @cached_property
    def openapi(self) -> dict[str, Any]:
        """OpenAPI's document of this door."""
        return document(self._operations, self._native)

    async def _unknown(self, exchange: Exchange) -> None:
        raise Error(Code.NOT_FOUND, f"there is no {exchange.request.method} {exchange.request.url.path[:200]} here")


class _ByMethod:
    """Picks what answers a method of HTTP at a path."""

    def __init__(
        self, applications: Mapping[str, ASGIApp], limits: Limits, calls: Calls, convention: Convention
    ) -> None:
        self._applications = applications
        self._refusal = _Open(self._refuse, limits, calls, convention)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._applications.get(scope["method"], self._refusal)(scope, receive, send)

    async def _refuse(self, exchange: Exchange) -> None:
        allowed = ", ".join(sorted(self._applications))
        exchange.headers["allow"] = allowed
        what = f"{exchange.request.method} is not possible here; use {allowed}"
        raise Error(Code.INVALID_ARGUMENT, what, reason="METHOD_NOT_ALLOWED")


class _Open:
    """A route that anybody may ask, whoever it is: it tells nothing about tenants."""

    def __init__(self, handler: Handler, limits: Limits, calls: Calls, convention: Convention = OPENAI) -> None:
        self._handler, self._limits, self._calls, self._convention = handler, limits, calls, convention

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._limits, self._convention)
        try:
            await self._handler(exchange)
        except Error as error:
            await refuse(exchange, error, self._calls)
