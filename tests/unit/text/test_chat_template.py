"""The sandbox: what templates may do, what they may not, and how long they may take."""

from __future__ import annotations

import time
from typing import Any

import pytest

from loramux_server.core.errors import Code, Error
from loramux_server.text import ChatTemplate

HI = [{"role": "user", "content": "hi"}]


def _refused(template: str, **limits: Any) -> Error:
    with pytest.raises(Error) as caught:
        ChatTemplate(template, **limits).render(HI)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.violations[0].field == "messages"
    return caught.value


def test_a_template_that_does_not_compile_is_the_operators_to_mend() -> None:
    with pytest.raises(Error, match="does not compile") as caught:
        ChatTemplate("{% for %}")
    assert caught.value.code is Code.FAILED_PRECONDITION


def test_raise_exception_reaches_the_caller_in_the_templates_words() -> None:
    assert "after the system turn only" in _refused("{{ raise_exception('after the system turn only') }}").message


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].nothing.deeper }}",
        "{{ 1 + 'a' }}",
        "{{ messages | dictsort }}",
        "{{ 1 / 0 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
    ],
)
def test_what_a_template_trips_over_is_an_answer_not_a_crash(template: str) -> None:
    assert _refused(template).reason == "CHAT_TEMPLATE_REFUSED"


@pytest.mark.parametrize(
    "payload",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ namespace.__init__.__globals__['json'] }}",
        "{{ dict.__call__.__globals__['json'] }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ '{0.__class__.__name__}'.format(messages) }}",
    ],
)
def test_pythons_insides_are_refused(payload: str) -> None:
    assert _refused(payload).reason == "CHAT_TEMPLATE_REFUSED"


@pytest.mark.parametrize("payload", ["raise_exception.__globals__", "(messages | first).__class__", "self.__init__"])
def test_pythons_insides_show_as_nothing(payload: str) -> None:
    assert ChatTemplate("{{ " + payload + " is defined }}").render(HI) == "False"


def test_a_loop_without_output_meets_the_deadline() -> None:
    inner = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
    started = time.monotonic()
    error = _refused(inner, max_seconds=0.1)
    assert error.reason == "CHAT_TEMPLATE_LIMIT"
    assert time.monotonic() - started < 5


def test_long_output_is_cut_off() -> None:
    error = _refused("{% for a in range(90000) %}{{ 'x' * 1000 }}{% endfor %}", max_chars=10_000)
    assert error.reason == "CHAT_TEMPLATE_LIMIT"


@pytest.mark.parametrize(
    "template", ["{{ 'x' * 10**9 }}", "{{ 10 ** 10000 }}", "{{ 3000000 * [1] }}", "{{ range(10**9) }}"]
)
def test_values_do_not_explode(template: str) -> None:
    assert _refused(template).reason == "CHAT_TEMPLATE_REFUSED"


def test_ordinary_arithmetic_works() -> None:
    assert ChatTemplate("{{ '=' * 3 }}{{ 2 * 3 }}{{ 2 ** 5 }}{{ 1.5 * 2 }}").render(HI) == "===6323.0"


def test_loops_keep_their_loop_variable() -> None:
    template = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ '.' if loop.last else ',' }}"
        "{{ loop.previtem.content if not loop.first }}{% if m.content == 'b' %}{% continue %}{% endif %}"
        "{{ m.content }}{% if m.content == 'c' %}{% break %}{% endif %}{% else %}none{% endfor %}"
    )
    messages = [{"role": "user", "content": content} for content in "abcd"]
    assert ChatTemplate(template).render(messages) == "1/4,a2/4,a3/4,bc"


def test_recursive_and_filtered_loops_work() -> None:
    template = (
        "{% for m in messages if m.content recursive %}{{ m.content }}"
        "{% if m.parts %}({{ loop(m.parts) }}){% endif %}{% endfor %}"
    )
    nested = [{"content": "a", "parts": [{"content": "b"}, {"content": ""}]}]
    assert ChatTemplate(template).render(nested) == "a(b)"


def test_blocks_are_trimmed_and_generation_blocks_pass_through() -> None:
    template = "{% if true %}\n  {% generation %}\nx{{ messages[0].content }}\n{% endgeneration %}\n{% endif %}\ny"
    assert ChatTemplate(template).render(HI) == "xhi\ny"


def test_variables_and_dates_are_there() -> None:
    template = "{{ bos_token }}{{ strftime_now('%Y') }}{{ dict(a=1).a }}{{ tools is none }}{{ eos_token }}"
    text = ChatTemplate(template, {"bos_token": "<s>"}).render(HI)
    assert text == f"<s>{time.strftime('%Y')}1True"
