"""The tokens that end an answer: one list for serving, shapes, training, gates and comparisons.

A model's files often disagree: generation_config.json names the token that ends a text, the tokenizer the one that
ends a turn, or the other way round. Whichever of them the model says, its answer is over.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import AddedToken

from ..core.errors import Error
from .chat.chat_template import ChatTemplate
from .files import TokenizerFiles

_ANSWER = "loramux-answer"


def end_token_ids(
    files: TokenizerFiles, eos_token_id: int | None, template: ChatTemplate | None, added: Mapping[int, AddedToken]
) -> tuple[int, ...]:
    """The end tokens of all files, and the one that the chat template puts after an answer; none twice.

    ``eos_token_id`` is the tokenizer's own, ``added`` are its added tokens by id.
    """
    turn_end = None if template is None else _turn_end(template, added)
    named = [*files.generation_end_ids, *(id for id in (eos_token_id, turn_end) if id is not None)]
    # config.json may hold a default of its model class, which is an ordinary token of this vocabulary.
    inherited = [id for id in files.config_end_ids if not named or id in added]
    return tuple(dict.fromkeys([*files.generation_end_ids, *inherited, *named]))


def _turn_end(template: ChatTemplate, added: Mapping[int, AddedToken]) -> int | None:
    """The added token that follows the answer of a conversation's last turn, if one does.

    Only the last turn tells: a template may part the pieces of one answer by a token of its own.
    """
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}]
    try:
        _, answer, after = template.render(turns).rpartition(_ANSWER)
    except Error:  # a template that takes no such conversation
        return None
    follow = [id for id, token in added.items() if answer and after.lstrip().startswith(token.content)]
    return max(follow, key=lambda id: len(added[id].content), default=None)
