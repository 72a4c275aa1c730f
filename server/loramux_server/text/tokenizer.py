"""The base model's tokenizer: the same ids as transformers gives, without transformers.

Reads a folder as ``save_pretrained`` writes it, through the ``tokenizers`` library. Everything here is plain
computation; call it off the event loop for long texts. Safe from several threads.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ..core.bounds import NOT_UNICODE, utf8_size
from ..core.errors import Code, Error, FieldViolation, invalid_field
from ..core.types import Message
from .chat.chat_template import ChatTemplate
from .chat.final_message import up_to_final_content
from .control import ControlGuard
from .detokenizer import Detokenizer, Pieces
from .end_tokens import end_token_ids
from .files import TokenizerFiles, read_tokenizer_files, unreadable

MAX_BYTES = 4 * 1024 * 1024
"""Longest text that is tokenised, in bytes of UTF-8."""
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


@dataclass(frozen=True, slots=True)
class RenderedTurns:
    """A conversation as text and as ids, both cut where its messages begin.

    The first n messages are the first n ``turns``, and ``ask`` with the generation prompt or ``end`` without.
    """

    turns: tuple[str, ...]
    ids: tuple[list[int], ...]
    ask: str
    end: str


class TextTokenizer:
    """Token ids from prompts and conversations, and text from token ids. Make one with :meth:`load`."""

    def __init__(self, tokenizer: Tokenizer, files: TokenizerFiles, *, max_bytes: int = MAX_BYTES) -> None:
        self._tokenizer = tokenizer
        self._max_bytes = max_bytes
        self.folder: Path | None = None
        """Where it was read from."""
        _apply(tokenizer, files)
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self.bos_token_id: int | None = self._named(files, "bos_token")
        self.chat_template = (
            ChatTemplate(files.chat_template, files.special_tokens, tools_source=files.tools_template)
            if files.chat_template
            else None
        )
        own_eos = self._named(files, "eos_token")
        self.eos_token_ids = end_token_ids(files, own_eos, self.chat_template, added)
        """Tokens that end an answer (see end_tokens.py)."""
        self.eos_token_id: int | None = own_eos if own_eos is not None else next(iter(self.eos_token_ids), None)
        """The token that ends a training row without a template."""
        self._pieces = Pieces(tokenizer, self.special_ids)

        # A special token of our own that no text can contain: it parts text without leaving a trace (see control.py).
        self._breaker = f"<|loramux-break-{secrets.token_hex(16)}|>"
        tokenizer.add_special_tokens([AddedToken(self._breaker, special=True, normalized=False)])
        self._breaker_id = tokenizer.token_to_id(self._breaker)
        literals = self.chat_template.literals if self.chat_template else ""
        forbidden = self.special_ids | set(self.eos_token_ids)
        self._guard = ControlGuard(
            special=[token.content for id, token in added.items() if id in forbidden],
            template=[
                token.content for token in added.values() if token.content in literals and not token.content.isspace()
            ],
            breaker=self._breaker,
        )
        self._starts_words = self._breaker_starts_word()
        self._apart = tuple(
            token.content
            for token in added.values()
            if not (token.lstrip or token.rstrip or token.single_word or (token.normalized and tokenizer.normalizer))
        )
        """Added tokens that part what comes before them from what comes after."""

    @classmethod
    def load(cls, folder: str | Path, *, max_bytes: int = MAX_BYTES) -> TextTokenizer:
        """Read ``tokenizer.json`` and what lies beside it.

        Raises FAILED_PRECONDITION naming the file that is missing or broken.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise unreadable(path, "it is missing")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every kind of broken file
            raise unreadable(path, error) from error
        made = cls(tokenizer, read_tokenizer_files(folder), max_bytes=max_bytes)
        made.folder = folder
        return made

    # Text to ids

    def encode(self, text: str, *, field: str = "prompt", after: str = "") -> list[int]:
        """Ids of a plain prompt with the special tokens that the model's tokenizer adds by default.

        Control tokens written in the text are control tokens here, as everywhere else for plain prompts; those in
        the text ``after`` which it comes are text.
        Raises INVALID_ARGUMENT for text that is not valid Unicode, RESOURCE_EXHAUSTED for text that is too long.
        """
        self._check(after + text, field)
        ids = self._tokenizer.encode(self._guard.break_all(after) + text, add_special_tokens=True).ids
        return [id for id in ids if id != self._breaker_id] if after else list(ids)

    def encode_continuation(self, text: str, *, field: str = "completion") -> list[int]:
        """Ids of text that follows other text: no special tokens added, no space put before its first word."""
        self._check(text, field)
        return self._continue(text)

    def encode_literal(self, text: str) -> list[int]:
        """Ids of text that follows other text, where control tokens are text too, spelt in ordinary tokens.

        Raises INVALID_ARGUMENT for a control token of one character, which cannot be spelt otherwise.
        """
        return self._continue(self._guard.break_all(text))

    def encode_chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Ids of a conversation through the chat template, ready to be answered.

        ``tools`` and ``chat_template_kwargs`` are what the template is given beside the messages. Control
        tokens inside message contents stay text. Raises INVALID_ARGUMENT naming the message or the
        template's complaint, FAILED_PRECONDITION when the base has no chat template.
        """
        return self.encode_rendered(
            self.render_chat(
                messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                chat_template_kwargs=chat_template_kwargs,
            )
        )

    def render_chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text for :meth:`encode_rendered`. It may hold breakers: show :meth:`plain` of it.

        With ``continue_final_message`` it ends where the content of the last message does, and
        ``add_generation_prompt`` has no effect.
        """
        if self.chat_template is None:
            raise Error(
                Code.FAILED_PRECONDITION,
                "this base model has no chat template: send a plain prompt instead of messages",
                reason="NO_CHAT_TEMPLATE",
            )
        turns = [message.fields if isinstance(message, Message) else message for message in messages]
        self._check_turns(turns)
        given: Mapping[str, Any] = {"tools": tools, "chat_template_kwargs": chat_template_kwargs}
        marked, given, markers = self._guard.mark(turns, given)
        if continue_final_message:
            rendered = up_to_final_content(self.chat_template, marked, given, mark=self._breaker)
        else:
            rendered = self.chat_template.render(marked, add_generation_prompt=add_generation_prompt, **given)
        return self._guard.break_marked(rendered, markers)

    def render_turns(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> RenderedTurns | None:
        """As :meth:`render_chat`, cut into turns that are tokenised each for itself, at a cost that is linear.

        None where the template or the tokenizer allows no such cut: then each beginning has to be rendered.
        """
        if self.chat_template is None:
            return None
        self._check_turns(messages)
        given: Mapping[str, Any] = {"tools": tools, "chat_template_kwargs": chat_template_kwargs}
        marked, given, markers = self._guard.mark(messages, given)
        found = self.chat_template.render_turns(marked, **given)
        if found is None:
            return None
        turns = tuple(self._guard.break_marked(turn, markers) for turn in found.turns)
        ask, end = (self._guard.break_marked(text, markers) for text in (found.ask, found.end))
        self._check(self.plain("".join(turns)), "messages")
        if not all(self._part(before, turn) and self._part(before, ask) for before, turn in itertools.pairwise(turns)):
            return None
        # A token that spans a border after all would show here.
        ids = tuple(self.encode_turn(turn) if number else self._encode_parts(turn) for number, turn in enumerate(turns))
        whole = self._encode_parts("".join(turns))
        return RenderedTurns(turns, ids, ask, end) if [id for each in ids for id in each] == whole else None

    def encode_turn(self, text: str) -> list[int]:
        """Ids of text that follows a turn of :meth:`render_turns`."""
        return self._encode_parts(self._breaker + text)

    def encode_rendered(self, rendered: str) -> list[int]:
        """Ids of a text from :meth:`render_chat`. No special tokens are added: the template writes them."""
        self._check(self.plain(rendered), "messages")
        return self._encode_parts(rendered)

    def encode_rendered_continuation(self, rendered: str) -> list[int]:
        """Ids of the end of a text from :meth:`render_chat`, tokenised apart from what comes before it."""
        self._check(self.plain(rendered), "messages")
        return self._continue(rendered)

    def plain(self, rendered: str) -> str:
        """A text from :meth:`render_chat` as a person would read it."""
        return rendered.replace(self._breaker, "")

    # Ids to text

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids. Ids outside the vocabulary are left out."""
        return self._pieces.decode(ids, skip_special_tokens=skip_special_tokens)

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Text of an answer: special tokens are left out, and the token that ended it whether special or not."""
        return self.decode(ids[:-1] if ids and ids[-1] in self.eos_token_ids else ids)

    def detokenizer(self, *, exact: bool = False) -> Detokenizer:
        """A fresh incremental decoder for one generation, special tokens left out."""
        return Detokenizer(self._pieces, exact=exact)

    def token_text(self, id: int) -> str:
        """How one token alone reads; U+FFFD stands for part of a character."""
        return self._pieces.decode([id], skip_special_tokens=False)

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token stands for."""
        return self._pieces.token_bytes(id)

    def spelling(self, id: int) -> str | None:
        """How the vocabulary writes a token; None outside it."""
        return self._pieces.spelling(id)

    # Inside

    def _encode_parts(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [id for id in ids if id != self._breaker_id]

    def _part(self, before: str, after: str) -> bool:
        """Whether two texts that follow each other are tokenised each for itself: a control token parts them."""
        return not after or before.endswith(self._apart) or after.startswith(self._apart)

    def _continue(self, text: str) -> list[int]:
        if not self._starts_words:
            return self._encode_parts(self._breaker + text)
        anchor = self._encode_parts("\n")
        ids = self._encode_parts("\n" + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else self._encode_parts(text)

    def _breaker_starts_word(self) -> bool:
        """Whether the tokenizer puts a space before a word even after a special token (old SentencePiece models)."""
        ids = self._encode_parts(self._breaker + "a")
        token = self._tokenizer.id_to_token(ids[0]) if ids else ""
        return token is not None and token.startswith(("▁", "Ġ"))

    def _check(self, text: str, field: str) -> None:
        if (size := utf8_size(text)) is None:
            raise invalid_field(field, NOT_UNICODE, reason="INVALID_TEXT")
        if size > self._max_bytes:
            description = f"has {size} bytes; at most {self._max_bytes} are taken"
            raise Error(
                Code.RESOURCE_EXHAUSTED,
                f"{field}: {description}",
                reason="TEXT_TOO_LONG",
                violations=[FieldViolation(field, description)],
            )

    def _check_turns(self, turns: Sequence[Mapping[str, Any]]) -> None:
        if not turns:
            raise invalid_field("messages", "is empty; give at least one message")
        for index, turn in enumerate(turns):
            if not is_role(turn.get("role")):
                raise invalid_field(
                    f"messages[{index}].role", f"{turn.get('role')!r} is none of {', '.join(sorted(ROLES))}"
                )
            if isinstance(content := turn.get("content"), str):
                self._check(content, f"messages[{index}].content")

    def _named(self, files: TokenizerFiles, name: str) -> int | None:
        text = files.special_tokens.get(name)
        return None if text is None else self._tokenizer.token_to_id(text)


def is_role(value: object) -> bool:
    """Whether a message may have this role."""
    return isinstance(value, str) and value in ROLES


def _apply(tokenizer: Tokenizer, files: TokenizerFiles) -> None:
    """Bring the bare tokenizer to what transformers makes of the folder: named tokens are special, no padding.

    ``add_bos_token`` of the config is left alone on purpose: where there is a tokenizer.json, that decides.
    """
    tokenizer.no_padding()
    tokenizer.no_truncation()
    known = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    missing = [text for text in files.special_tokens.values() if not known.get(text)]
    missing += [text for text in files.extra_special_tokens if text not in known]
    if missing:
        unique = dict.fromkeys(missing)
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in unique])
