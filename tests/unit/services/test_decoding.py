"""However the engine cuts its tokens into events, the text is that of the whole, cut at the first stop string."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_server.core.backend import TokenEvent
from loramux_server.core.types import FinishReason, TokenLogprob
from loramux_server.services.choice import ChoiceDecoder
from loramux_server.text import StopMatcher, TextTokenizer

texts = st.text(alphabet=st.sampled_from("ab STOPend🙂東京é\n"), max_size=40)
stops = st.lists(st.text(alphabet=st.sampled_from("abSTOP 🙂京"), min_size=1, max_size=4), max_size=3)
sizes = st.lists(st.integers(1, 5), min_size=1, max_size=40)


def whole(text: str, stop: list[str]) -> tuple[str, bool]:
    """The specification: cut at the stop string that is complete first, the longest of those that end together."""
    ends = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]
    return (text[: min(ends)[1]], True) if ends else (text, False)


@settings(max_examples=150, deadline=None)
@given(answer=texts, stop=stops, sizes=sizes)
def test_text_does_not_depend_on_how_tokens_come(
    text: TextTokenizer, answer: str, stop: list[str], sizes: list[int]
) -> None:
    ids = text.encode_continuation(answer)
    decoder = ChoiceDecoder(0, text.detokenizer(), StopMatcher(stop), frozenset())
    chunks = []
    at = 0
    for size in [*sizes, len(ids) + 1]:
        part = tuple(ids[at : at + size])
        at += size
        last = at >= len(ids)
        logprobs = tuple(TokenLogprob(id, -1.0) for id in part)
        chunks.append(
            decoder.push(TokenEvent("x", part, logprobs, finish_reason=FinishReason.LENGTH if last else None))
        )
        if decoder.finish_reason is not None:
            break
    wanted, stopped = whole(answer, stop)
    assert "".join(chunk.text for chunk in chunks) == wanted
    assert chunks[-1].finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])
    # Tokens are reported up to the one that completed the stop string, each with its log-probability.
    seen = [token for chunk in chunks for token in chunk.token_ids]
    assert seen == ids[: len(seen)]
    assert decoder.tokens == len(seen)
    assert [entry.token_id for chunk in chunks for entry in chunk.logprobs] == seen
    if not stopped:
        assert len(seen) == len(ids)
    else:
        assert whole(text.decode(seen), stop)[1]
        assert not whole(text.decode(seen[:-1]).rstrip("\ufffd"), stop)[1]
