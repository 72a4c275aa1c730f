"""The sync client."""

from ._sync.client import Client, CompletionStream

__all__ = ["Client", "CompletionStream"]
