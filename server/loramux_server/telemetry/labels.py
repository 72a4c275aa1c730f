"""Label values: words of the server's own, and how a stack is written."""

from __future__ import annotations

from ..core.types import BASE_NAME, Stack

OTHER = "_other"
"""All that have no label of their own. No name of an adapter or a tenant begins with an underscore."""
NONE = "_none"
"""Of calls that compute with no stack, or were refused before theirs was known."""
_CALLED_BASE = f"adapter:{BASE_NAME}"
"""An adapter that was published as ``base`` before the word was the server's own."""


def adapter_label(name: str) -> str:
    """The value for an adapter, which never is the one for the empty stack."""
    return _CALLED_BASE if name == BASE_NAME else name


def stack_label(stack: Stack) -> str:
    """One value for a whole stack, whatever the order of its adapters: ``acme+formal``, ``base`` for none.

    So sums over stacks count each token once.
    """
    names = [entry.adapter.name for entry in stack.entries]
    if len(names) > 1:
        return "+".join(sorted(names))
    return adapter_label(names[0]) if names else BASE_NAME


def names_in(label: str) -> frozenset[str]:
    """Names of the adapters behind a label of :func:`stack_label`."""
    if label == BASE_NAME:
        return frozenset()
    return frozenset({BASE_NAME} if label == _CALLED_BASE else label.split("+"))
