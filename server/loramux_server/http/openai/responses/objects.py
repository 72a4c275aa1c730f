"""OpenAI's object of a response as it grows."""

from __future__ import annotations

import time
from typing import Any

from ....core.errors import Code, Error
from ....core.types import Usage
from ....services.inference.types import GenerateRequest
from .schema import ResponseRequest

_ERRORS = {Code.RESOURCE_EXHAUSTED: "rate_limit_exceeded", Code.INVALID_ARGUMENT: "invalid_prompt"}
"""``code`` of a response that failed; any other is ``server_error``."""


class ResponseObject:
    """What was asked, as it was obeyed, and what has been answered: the items of ``output``, each an object."""

    def __init__(self, asked: ResponseRequest, request: GenerateRequest) -> None:
        self.id = f"resp_{request.request_id}"
        self.output: list[dict[str, Any]] = []
        self.model = ""
        self._state: dict[str, Any] = {
            "status": "in_progress",
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "usage": None,
        }
        self._asked: dict[str, Any] = {
            "created_at": int(time.time()),
            "instructions": asked.instructions,
            "tools": [tool.model_dump() for tool in asked.tools or ()],
            "tool_choice": _dumped(asked.tool_choice) or "auto",
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "text": _text(asked),
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "presence_penalty": request.sampling.presence_penalty,
            "frequency_penalty": request.sampling.frequency_penalty,
            "top_logprobs": asked.top_logprobs or 0,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": asked.max_tool_calls,
            "metadata": asked.metadata or {},
            "reasoning": {"effort": None, "summary": None},
            "truncation": "disabled",
            "store": False,
            "background": False,
            "previous_response_id": None,
            "service_tier": "default",
            "user": asked.user,
            "safety_identifier": asked.safety_identifier,
            "prompt_cache_key": asked.prompt_cache_key,
        }

    def item_id(self, prefix: str) -> str:
        """The id of the item that comes next."""
        return f"{prefix}_{self.id.removeprefix('resp_')}_{len(self.output)}"

    def end(self, *, cut: bool) -> str:
        """All was said, or what fits was: the status."""
        if cut:
            self._state |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        else:
            self._state |= {"status": "completed", "completed_at": int(time.time())}
        return str(self._state["status"])

    def fail(self, error: Error) -> None:
        """What was said is all that will be said."""
        told = {"code": _ERRORS.get(error.code, "server_error"), "message": error.message}
        self._state |= {"status": "failed", "error": told}

    def use(self, usage: Usage, reasoning: int) -> None:
        """What the response cost; ``reasoning`` of the answer's tokens are thoughts."""
        self._state["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def shown(self) -> dict[str, Any]:
        """The object as it is now."""
        return {
            "id": self.id,
            "object": "response",
            "model": self.model,
            **self._state,
            "output": list(self.output),
            **self._asked,
        }


def _text(asked: ResponseRequest) -> dict[str, Any]:
    given = _dumped(asked.text) or {}
    return {**given, "format": given.get("format") or {"type": "text"}}


def _dumped(value: Any) -> Any:
    return value.model_dump(by_alias=True, exclude_none=True) if hasattr(value, "model_dump") else value
