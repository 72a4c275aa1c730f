"""The async client: ``Client`` with ``await``."""

from ._async.client import AsyncClient, AsyncCompletionStream

__all__ = ["AsyncClient", "AsyncCompletionStream"]
