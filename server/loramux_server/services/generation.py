"""Generation, scoring and tokenisation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from ..core.backend import Backend, EngineInfo
from ..core.types import Chunk, GenerateRequest, Message
from .limits import Limits
from .observer import NullObserver, Observer
from .views import Completion, Score, ScoreRequest, Tokens


class GenerationService:
    """Answers requests from one engine. One instance serves all doors; all methods run on the event loop."""

    def __init__(
        self,
        backend: Backend,
        store: Any,
        text: Any,
        info: EngineInfo,
        limits: Limits,
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer or NullObserver()

    def generate(self, request: GenerateRequest) -> AsyncIterator[Chunk]:
        """Stream an answer.

        Chunks of the ``n`` choices come as they are made, told apart by ``index``. Everything that can be refused
        is refused before the first chunk. Closing the iterator early stops the engine's work. Raises ``Error``:
        INVALID_ARGUMENT (all bad fields at once), NOT_FOUND (adapter), DEADLINE_EXCEEDED, what the engine reports.
        """
        raise NotImplementedError

    async def generate_once(self, request: GenerateRequest) -> Completion:
        """The whole answer of ``generate`` at once; the same errors."""
        raise NotImplementedError

    async def score(self, request: ScoreRequest) -> Score:
        """Log-probabilities of a given continuation."""
        raise NotImplementedError

    async def tokenize(self, text: str | None = None, messages: tuple[Message, ...] = ()) -> Tokens:
        """Token ids of exactly one of a plain prompt and messages, as ``generate`` would feed them to the model."""
        raise NotImplementedError

    def token_text(self, token_id: int) -> str:
        """The text of one token, for log-probabilities (bytes that are no character by themselves become U+FFFD)."""
        raise NotImplementedError
