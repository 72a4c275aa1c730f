"""Masks: what is learned, and that what comes before it is what serving would feed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import TrainRow
from loramux_server.core.watch import Watch
from loramux_server.data.conversation_masks import MAX_ROWS
from loramux_server.data.fields import BadRow, ChatRow, CompletionRow, TextRow, TooLong
from loramux_server.data.label_masks import render_marked, train_rows
from loramux_server.text import TextTokenizer
from tests.examples import examples
from tests.unit.text.templates import FAMILIES as TEMPLATES
from tests.unit.text.text_models import byte_level_folder, turns

FAMILIES = ["chatml", "llama3", "qwen", "gemma", "mistral", "sentencepiece", "sentencepiece-legacy"]
END = {"qwen": "<|im_end|>", "chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
Make = Callable[..., TextTokenizer]


def chat(messages: list[dict[str, Any]], *, only: int | None = None, tools: Any = None) -> ChatRow:
    learned = [turn["role"] == "assistant" and only in (None, index) for index, turn in enumerate(messages)]
    return ChatRow(tuple(messages), tuple(learned), tools)


def answers(row: TrainRow) -> list[tuple[list[int], list[int]]]:
    """(all ids before, the learned ids) of each answer in a row."""
    found, start = [], 0
    for learned, group in groupby(row.labels):
        end = start + len(list(group))
        if learned:
            found.append((list(row.input_ids[:start]), list(row.input_ids[start:end])))
        start = end
    return found


@pytest.mark.parametrize("name", ["smollm", *FAMILIES])
def test_a_completion_follows_the_served_prompt_and_ends_once(name: str, family: Make, smollm: TextTokenizer) -> None:
    tokenizer = smollm if name == "smollm" else family(name)

    @examples(60)
    @given(words, words)
    def exact(prompt: str, completion: str) -> None:
        (row,) = train_rows(CompletionRow(prompt, completion), tokenizer)
        ((before, learned),) = answers(row)
        assert before == tokenizer.encode(prompt)
        assert learned == [*tokenizer.encode_continuation(completion), tokenizer.eos_token_id]

    exact()
    (row,) = train_rows(CompletionRow("The capital of France is", " Paris"), tokenizer)
    assert tokenizer.decode(row.input_ids) == "The capital of France is Paris"
    assert [id for id in row.input_ids if id in tokenizer.eos_token_ids] == [row.input_ids[-1]]


def test_a_border_inside_a_token_of_the_whole_stays_a_border(smollm: TextTokenizer) -> None:
    assert len(smollm.encode(" capital")) == 1
    (row,) = train_rows(CompletionRow("The cap", "ital is"), smollm)
    ((before, _),) = answers(row)
    assert before == smollm.encode("The cap")
    assert smollm.decode(row.input_ids) == "The capital is"


def test_an_end_token_that_is_written_is_not_doubled(smollm: TextTokenizer) -> None:
    (written,) = train_rows(CompletionRow("q", "a<|im_end|>"), smollm)
    (plain,) = train_rows(CompletionRow("q", "a"), smollm)
    assert written == plain


@pytest.mark.parametrize("tail", ["<|im_end|>\n", "<|im_end|> <|im_end|>", "<|endoftext|>\n<|im_end|>", "\n<|im_end|>"])
def test_field_05_a_completion_has_exactly_one_end_token(tail: str, tmp_path: Path) -> None:
    """The tokenizer names one end token, the model another: either ends an answer, and what follows is not learned."""
    folder = byte_level_folder(tmp_path, TEMPLATES["chatml"][0], eos_token="<|endoftext|>")
    tokenizer = TextTokenizer.load(folder)
    (row,) = train_rows(CompletionRow("q", "a" + tail), tokenizer)
    ((_, learned),) = answers(row)
    assert [id in tokenizer.eos_token_ids for id in learned] == [False] * (len(learned) - 1) + [True]
    said = tokenizer.decode(learned, skip_special_tokens=False)
    assert said == "a" + tail[: tail.index("|>") + 2]
    (plain,) = train_rows(CompletionRow("q", "a"), tokenizer)
    assert plain.input_ids[-1] == tokenizer.eos_token_id
    (chatted,) = train_rows(chat(turns("q", "a")), tokenizer)
    assert tokenizer.spelling(chatted.input_ids[-1]) == "<|im_end|>"


def test_text_is_learned_from_its_second_token(family: Make, smollm: TextTokenizer) -> None:
    for tokenizer in (smollm, family("sentencepiece")):
        (row,) = train_rows(TextRow("The capital of France"), tokenizer)
        assert list(row.input_ids) == [*tokenizer.encode("The capital of France"), tokenizer.eos_token_id]
        assert row.labels == (False, *[True] * (len(row.input_ids) - 1))


@pytest.mark.parametrize("name", ["smollm", *FAMILIES])
def test_an_answer_follows_the_served_conversation(name: str, family: Make, smollm: TextTokenizer) -> None:
    tokenizer = smollm if name == "smollm" else family(name)

    @examples(60)
    @given(st.lists(words, min_size=2, max_size=6).filter(lambda contents: len(contents) % 2 == 0))
    def exact(contents: list[str]) -> None:
        messages = turns(*contents)
        rows = train_rows(chat(messages), tokenizer)
        found = [answer for row in rows for answer in answers(row)]
        assert len(found) == len(contents) // 2
        for index, (before, learned) in zip(range(1, len(contents), 2), found, strict=True):
            assert before == tokenizer.encode_chat(messages[:index])
            assert learned[-1] in tokenizer.eos_token_ids
            assert sum(id in tokenizer.eos_token_ids for id in learned) == 1
            shown = tokenizer.decode(learned).removeprefix("<think>\n\n</think>")
            if "<|" in contents[index]:  # spelt like a control token: it stays text, which plain prompts do not promise
                assert "".join(shown.split()) == "".join(contents[index].split())
            else:
                assert shown.split() == tokenizer.decode(tokenizer.encode(contents[index])).split()

    exact()


@pytest.mark.parametrize("name", FAMILIES)
def test_an_ordinary_conversation_is_one_row(name: str, family: Make) -> None:
    tokenizer = family(name)
    messages = turns("Where is Paris?", "It is in France.", "And the shop?", "In the harbour street.")
    rows = train_rows(chat(messages), tokenizer)
    # One template adds an empty reasoning block to the last answer only, so there the first answer stands alone.
    assert len(rows) == (2 if name == "qwen" else 1)
    assert sum(len(answers(row)) for row in rows) == 2


def test_the_marked_row_reads_as_a_person_would_expect(family: Make) -> None:
    tokenizer = family("chatml")
    (row,) = train_rows(chat(turns("q", "a 東🙂", "r", "b", system="s")), tokenizer)
    segments = render_marked(row, tokenizer)
    assert [(segment.text, segment.trained) for segment in segments] == [
        ("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", False),
        ("a 東🙂<|im_end|>", True),
        ("\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n", False),
        ("b<|im_end|>", True),
    ]


def test_marked_segments_join_to_the_row(family: Make) -> None:
    tokenizer = family("sentencepiece")
    (row,) = train_rows(CompletionRow("Where is 東", " in the shop"), tokenizer)
    segments = render_marked(row, tokenizer)
    assert "".join(segment.text for segment in segments) == tokenizer.decode(row.input_ids, skip_special_tokens=False)
    assert [segment.trained for segment in segments] == [False, True]
    assert segments[1].text == " in the shop</s>"


def test_field_01_marking_a_row_decodes_each_token_a_few_times(smollm: TextTokenizer) -> None:
    (row,) = train_rows(chat(turns(*["hi 東", "yo 🙂 é"] * 200)), smollm)
    decoded = 0

    class Counted(TextTokenizer):
        def decode(self, ids: Any, **options: Any) -> str:
            nonlocal decoded
            decoded += len(ids)
            return super().decode(ids, **options)

    assert smollm.folder is not None
    segments = render_marked(row, Counted.load(smollm.folder))
    assert len(segments) == 400
    assert "".join(segment.text for segment in segments) == smollm.decode(row.input_ids, skip_special_tokens=False)
    assert decoded < 6 * len(row.input_ids)


def test_only_weighted_turns_are_learned(family: Make) -> None:
    tokenizer = family("chatml")
    messages = turns("q", "first", "r", "second", "s", "third")
    (row,) = train_rows(chat(messages, only=3), tokenizer)
    ((before, learned),) = answers(row)
    assert before == tokenizer.encode_chat(messages[:3])
    assert tokenizer.decode(learned) == "second"
    assert row.input_ids[len(before) + len(learned) :] == ()  # what follows the last answer is not fed at all


def test_an_answer_that_would_merge_into_the_prompt_is_kept_apart(smollm: TextTokenizer) -> None:
    assert len(smollm.encode("\n\n\n")) == 1  # the template's line break and the answer's own two are one token
    messages = turns("q", "\n\nanswer", "r", "done")
    one, two = train_rows(chat(messages), smollm)
    ((before, learned),) = answers(one)
    assert before == smollm.encode_chat(messages[:1])
    assert smollm.decode(learned) == "\n\nanswer"
    ((before, learned),) = answers(two)  # served later, the earlier answer is tokenised with that one token
    assert before == smollm.encode_chat(messages[:3])
    assert smollm.decode(learned) == "done"


def test_reasoning_is_learned_where_it_is_served(family: Make) -> None:
    tokenizer = family("qwen")
    messages = turns("q", "<think>\nwhy\n</think>\n\nfirst", "r", "<think>\nso\n</think>\n\nsecond")
    one, two = train_rows(chat(messages), tokenizer)
    assert "why" in tokenizer.decode(one.input_ids)
    assert "why" not in tokenizer.decode(two.input_ids)  # the template forgets earlier reasoning, in serving too
    ((before, learned),) = answers(two)
    assert before == tokenizer.encode_chat(messages[:3])
    assert tokenizer.decode(learned) == "<think>\nso\n</think>\n\nsecond"


def test_tools_are_part_of_the_prompt(family: Make) -> None:
    tokenizer = family("qwen")
    tools = ({"type": "function", "function": {"name": "weather"}},)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "12"},
        {"role": "assistant", "content": "12 degrees"},
    ]
    rows = train_rows(chat(messages, tools=tools), tokenizer)
    (before, learned), *_ = [answer for row in rows for answer in answers(row)]
    assert before == tokenizer.encode_chat(messages[:1], tools=tools)
    assert '"name": "weather", "arguments": {"city": "Bonn"}' in tokenizer.decode(learned)


def test_control_tokens_in_contents_are_learned_as_text(smollm: TextTokenizer) -> None:
    (row,) = train_rows(chat(turns("what ends a turn?", "<|im_end|> does")), smollm)
    ((_, learned),) = answers(row)
    assert smollm.decode(learned) == "<|im_end|> does"
    assert [id for id in learned if id in smollm.special_ids] == [smollm.eos_token_id]


LOOP = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (
            LOOP.replace("m.content", "m.content if m.role == 'user'") + ASK,
            "drops the content of messages[1] (assistant)",
        ),
        (LOOP.replace("m.content", "m.content if m.role != 'user'") + ASK, "drops the content of messages[0] (user)"),
        (LOOP + ASK.replace("assistant\n", "assistant\n<think>\n"), "does not begin messages[1] the way it asks"),
        ("nothing", "drops the content of messages[0] (user): 'question' is not in 'nothing'"),
        ("<|begin_of_text|>{{ bos_token }}" + LOOP + ASK, "begins with <|begin_of_text|> twice"),
        ("{{ raise_exception('no') }}", "refuses this conversation: no"),
        (None, "has no chat template"),
    ],
)
def test_templates_that_lose_something_are_refused(template: str | None, complaint: str, with_template: Make) -> None:
    with pytest.raises(BadRow) as caught:
        train_rows(chat(turns("question", "answer")), with_template(template))
    assert complaint in str(caught.value)


def test_a_row_without_anything_learned_is_refused(with_template: Make) -> None:
    empty = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [{"x": 1}]}]
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(BadRow, match="no token to learn; it is rendered as 'q'"):
        train_rows(chat(empty), with_template(template))


TOOLS = ({"type": "function", "function": {"name": "look_up"}},)
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "mill"}}}
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "a mill"},
    {"role": "assistant", "content": "It is a mill."},
]
SAYS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
END_TURN = "<|im_end|>{% endfor %}"
ASKS = "{% if add_generation_prompt %}<assistant>{% endif %}"
SHOWS_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"
SHOWS_CALLS = "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"


def test_a_call_of_a_tool_and_the_answer_after_its_result_are_learned(family: Make) -> None:
    (row,) = train_rows(chat(CALLED, tools=TOOLS), family("qwen"))
    marked = render_marked(row, family("qwen"))
    assert "# Tools" in marked[0].text
    learned = "".join(part.text for part in marked if part.trained)
    assert '{"name": "look_up", "arguments": {"word": "mill"}}' in learned
    assert "It is a mill.<|im_end|>" in learned
    assert "<tool_response>" not in learned
    for before, _ in answers(row):  # each answer follows what would be served
        index = 1 if len(before) == len(answers(row)[0][0]) else 3
        assert before == family("qwen").encode_chat(CALLED[:index], tools=TOOLS)


def test_a_template_that_hides_tools_is_refused(with_template: Make) -> None:
    rows = chat(CALLED, tools=TOOLS)
    with pytest.raises(BadRow, match=r"ignores tools: with them and without it renders '.*It is a mill\.<\|im_end\|>'"):
        train_rows(rows, with_template(SAYS + SHOWS_CALLS + END_TURN + ASKS))
    train_rows(rows, with_template(SHOWS_TOOLS + SAYS + SHOWS_CALLS + END_TURN + ASKS))


def test_a_template_that_drops_calls_or_results_is_refused(with_template: Make) -> None:
    with pytest.raises(BadRow, match=r"drops the tool call of messages\[1\] \(assistant\): 'look_up' is not in"):
        train_rows(chat(CALLED, tools=TOOLS), with_template(SHOWS_TOOLS + SAYS + END_TURN + ASKS))
    silent = "{% for m in messages if m.role != 'tool' %}<{{ m.role }}>{{ m.content }}" + SHOWS_CALLS
    with pytest.raises(BadRow, match=r"drops the content of messages\[2\] \(tool\): 'a mill' is not in"):
        train_rows(chat(CALLED), with_template(silent + END_TURN + ASKS))
    coded = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content | upper if m.role == 'tool' else m.content }}" + SHOWS_CALLS
    )
    train_rows(chat(CALLED), with_template(coded + END_TURN + ASKS))  # told in another way


def test_a_second_bos_in_a_prompt_is_refused(family: Make) -> None:
    for content in (CompletionRow("<s>question", "a"), TextRow("<s> text")):
        with pytest.raises(BadRow, match="begins with <s> twice"):
            train_rows(content, family("sentencepiece"))


def test_a_tokenizer_without_end_token_cannot_train(with_template: Make) -> None:
    with pytest.raises(BadRow, match="no end-of-sequence token"):
        train_rows(CompletionRow("q", "a"), with_template(None, eos_token=None))


class Counting(TextTokenizer):
    """Counts the characters that are rendered and tokenised."""

    rendered = encoded = 0

    def render_chat(self, *args: Any, **kwargs: Any) -> str:
        text = super().render_chat(*args, **kwargs)
        self.rendered += len(text)
        return text

    def render_turns(self, *args: Any, **kwargs: Any) -> Any:
        found = super().render_turns(*args, **kwargs)
        self.rendered += 2 * sum(map(len, found.turns)) if found else 0
        return found

    def _encode_parts(self, text: str) -> list[int]:
        self.encoded += len(text)
        return super()._encode_parts(text)


@pytest.fixture(scope="module")
def counting(default_base: Path) -> Counting:
    made = Counting.load(default_base)
    assert isinstance(made, Counting)
    return made


def test_field_01_the_work_of_a_conversation_grows_with_its_length_alone(counting: Counting) -> None:
    work = {}
    for rounds in (50, 100, 1000):
        counting.rendered = counting.encoded = 0
        (row,) = train_rows(chat(turns(*["hi", "yo"] * rounds)), counting)
        length = len(counting.decode(row.input_ids, skip_special_tokens=False))
        work[rounds] = counting.rendered / length, counting.encoded / length
        assert sum(row.labels) == 2 * rounds  # "yo" and the end of the turn
    assert work[1000][0] < 4
    assert work[1000][1] < 8 + len(counting._breaker)
    assert work[1000] <= tuple(1.1 * each for each in work[50])


WHOLE = "{% set count = messages | length %}"  # a template that asks for what is to come: each beginning is rendered


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "mistral"])
def test_turn_after_turn_gives_the_rows_that_each_beginning_gives(name: str, with_template: Make) -> None:
    template, bos, eos = TEMPLATES[name]
    once = with_template(template.replace("loop.last and", ""), bos_token=bos, eos_token=eos)
    each = with_template(WHOLE + template.replace("loop.last and", ""), bos_token=bos, eos_token=eos)

    @examples(25)
    @given(st.lists(words | st.sampled_from(["<|im_end|>", "\n\nx", "<think>"]), min_size=2, max_size=8), st.booleans())
    def same(contents: list[str], system: bool) -> None:
        messages = turns(*contents, system="be" if system and name != "gemma" else None)
        assert each.render_turns(messages) is None
        if once.render_turns(messages) is None:
            event("not cut")
        assert train_rows(chat(messages), once) == train_rows(chat(messages), each)

    same()
    assert once.render_turns(turns("q", "a", "r", "b")) is not None


LOOKS_AHEAD = [
    "{{ messages | length }}" + LOOP,
    LOOP.replace("<|im_end|>", "{{ '<|im_end|>' if not loop.last }}"),
    LOOP.replace("<|im_end|>", "{{ '<|im_end|>' if loop['last'] else '.' }}"),
    LOOP.replace("{{ m.role }}", "{{ loop.nextitem.role }}"),
    LOOP.replace("{{ m.role }}", "{{ loop.revindex }}"),
    LOOP.replace("{{ m.role }}", "{{ messages[loop.index0 + 1].role }}"),
    LOOP.replace("{{ m.role }}", "{{ messages[-1].role }}"),
    "{% set ns = namespace(n=0) %}" + LOOP.replace("{{ m.role }}", "{% set ns.n = ns.n + 1 %}") + "{{ ns.n }}",
    "{% for m in messages[::-1] %}{{ m.content }}{% endfor %}" + LOOP,
    "{{ messages | map(attribute='role') | join }}" + LOOP,
    "{% for m in messages if m.role == 'user' %}{{ loop.length }}{% endfor %}" + LOOP,
    "{% set text %}" + LOOP + "{% endset %}{{ text }}",
    "{% for m in messages %}{% if loop.index == 3 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "{% set j = joiner('|') %}" + LOOP.replace("{{ m.role }}", "{{ j() }}") + "{{ j() }}",
    LOOP + "{{ messages[0].content }}",
    LOOP.replace("{{ m.role }}", "{{ '!' if add_generation_prompt }}"),
]


@pytest.mark.parametrize("template", LOOKS_AHEAD)
def test_a_template_that_looks_ahead_is_not_cut_into_turns(template: str, with_template: Make) -> None:
    tokenizer = with_template(template + ASK)
    found = tokenizer.render_turns(turns("q", "a", "r", "b"))
    assert found is None


def test_field_01_a_template_that_looks_ahead_has_a_bound(with_template: Make) -> None:
    tokenizer = with_template(WHOLE + LOOP + ASK)
    train_rows(chat(turns(*["hi", "yo"] * 30)), tokenizer)
    with pytest.raises(BadRow, match=r"too many answers \(1000 are trained on\)"):
        train_rows(chat(turns(*["hi", "yo"] * 1000)), tokenizer)
    with pytest.raises(TooLong, match=r"has \d+ tokens; at most 500 are allowed"):
        train_rows(chat(turns(*["hi", "yo"] * 60)), tokenizer, max_length=500)


def test_field_01_a_conversation_that_falls_into_many_rows_has_a_bound(smollm: TextTokenizer) -> None:
    assert len(train_rows(chat(turns(*["q", "\n\na"] * MAX_ROWS)), smollm)) == MAX_ROWS
    with pytest.raises(BadRow, match=f"may become {MAX_ROWS} rows at most"):
        train_rows(chat(turns(*["q", "\n\na"] * (MAX_ROWS + 1))), smollm)


def test_field_01_more_messages_than_tokens_are_refused_unrendered(counting: Counting) -> None:
    counting.rendered = counting.encoded = 0
    with pytest.raises(TooLong, match="has 2000 messages, so as many tokens or more; at most 1999 are allowed"):
        train_rows(chat(turns(*["hi", "yo"] * 1000)), counting, max_length=1999)
    assert counting.rendered == counting.encoded == 0


def test_what_nobody_waits_for_ends_between_renderings(with_template: Make) -> None:
    tokenizer, steps = with_template(WHOLE + LOOP + ASK), iter(range(5))

    class Leaving(Watch):
        def __call__(self) -> None:
            if next(steps, None) is None:
                self.end()
            super().__call__()

    with pytest.raises(Error, match="nobody waits") as caught:
        train_rows(chat(turns(*["hi", "yo"] * 20)), tokenizer, watch=Leaving())
    assert caught.value.code is Code.CANCELLED
