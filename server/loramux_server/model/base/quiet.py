"""Keep transformers off the terminal: progress is told to whoever asked, in our words, and its log lines join ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def transformers() -> Iterator[None]:
    """No bars while inside; from here on its log lines go where the process's do, and through the same filters."""
    from transformers.utils import logging

    logging.disable_default_handler()
    logging.enable_propagation()
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
