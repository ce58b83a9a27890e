from __future__ import annotations

import pytest

from mlxm.engine.formats.families import GENERIC
from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.prep.options import RenderOptions
from mlxm.prep.renderer import Rendered, Renderer
from mlxm.prep.template import ChatTemplate
from mlxm.types import Message, TextPart, Thinking

ASK = (Message(role="user", content=(TextPart("x"),)),)
UNSAID = Thinking()
SAID = "{{ messages[0].content }}"
SWITCH = SAID + "{% if enable_thinking is defined %}on={{ enable_thinking }}{% endif %}"
OTHER_SWITCH = SAID + "{% if thinking %}on{% endif %}"
EFFORT = (
    SAID
    + "{% if not reasoning_effort is defined %}{% set reasoning_effort = 'medium' %}{% endif %}{{ reasoning_effort }}"
)
TWO_LEVELS = EFFORT + "{% if reasoning_effort not in ['none', 'high'] %}{{ raise_exception('no') }}{% endif %}"
BUDGET = SAID + "{% if thinking_budget is defined %}b={{ thinking_budget }}{% endif %}"


def render(source: str, thinking: Thinking = UNSAID, options: str = "{}") -> Rendered:
    """What a template makes of a wish and options."""
    wishes = RenderOptions(thinking=thinking, template_options=options)
    return Renderer(ChatTemplate(source, {"bos_token": "<s>"}), GENERIC).render(ASK, wishes)


@pytest.mark.parametrize(
    ("source", "thinking", "text"),
    [
        (SWITCH, Thinking(), "x"),
        (SWITCH, Thinking(is_on=False), "xon=False"),
        (SWITCH, Thinking(is_on=False, effort="none"), "xon=False"),
        (SWITCH, Thinking(effort="none"), "xon=False"),
        (OTHER_SWITCH, Thinking(is_on=True), "xon"),
        (EFFORT, Thinking(), "xmedium"),
        (EFFORT, Thinking(is_on=True, effort="high"), "xhigh"),
        (EFFORT, Thinking(is_on=True), "xmedium"),
        (EFFORT, Thinking(effort="minimal"), "xlow"),
        (EFFORT, Thinking(effort="max"), "xhigh"),
        (BUDGET, Thinking(budget_tokens=100), "xb=100"),
    ],
)
def test_wishes_reach_the_template_in_its_own_words(source: str, thinking: Thinking, text: str) -> None:
    """Each family has its own names and levels."""
    assert Rendered(text) == render(source, thinking)


def test_levels_that_a_template_names_are_kept_to() -> None:
    """It refuses others."""
    source = TWO_LEVELS.replace("'medium'", "'high'")
    wishes = (Thinking(effort="none"), Thinking(effort="low"), Thinking(effort="max"))
    assert [render(source, wish).text for wish in wishes] == ["xnone", "xhigh", "xhigh"]
    assert Rendered("xnone") == render(source, Thinking(is_on=False))


@pytest.mark.parametrize(
    ("source", "thinking", "unused"),
    [
        (SAID, Thinking(is_on=False), ("thinking.is_on",)),
        (SAID, Thinking(is_on=True), ("thinking.is_on",)),
        (SAID, Thinking(is_on=True, effort="low"), ("thinking.effort",)),
        (SAID, Thinking(budget_tokens=5), ("thinking.budget_tokens",)),
        (SWITCH, Thinking(is_on=True, effort="low"), ("thinking.effort",)),
        (EFFORT, Thinking(is_on=False), ("thinking.is_on",)),
    ],
)
def test_wishes_without_a_word_are_told_of(source: str, thinking: Thinking, unused: tuple[str, ...]) -> None:
    """The prompt is made all the same: clients send them to any model."""
    assert unused == render(source, thinking).unused


def test_options_reach_the_template_and_win_over_wishes() -> None:
    """They are meant for this very template."""
    assert render(SWITCH, Thinking(is_on=True), '{"enable_thinking": false}').text == "xon=False"
    assert render(SAID + "{{ date_string }}", options='{"date_string": "today"}').text == "xtoday"


@pytest.mark.parametrize(
    ("source", "options", "text", "unused"),
    [
        (OTHER_SWITCH, '{"enable_thinking": true}', "xon", ()),
        (SWITCH, '{"reasoning_effort": "none"}', "xon=False", ()),
        (SAID, '{"enable_thinking": false}', "x", ("chat_template_kwargs.enable_thinking",)),
        (SAID, '{"reasoning_effort": "low"}', "x", ("chat_template_kwargs.reasoning_effort",)),
    ],
)
def test_switches_of_other_families_are_understood(
    source: str, options: str, text: str, unused: tuple[str, ...]
) -> None:
    """A client cannot know each template's name for the same thing."""
    assert Rendered(text, unused) == render(source, options=options)


def test_an_option_that_the_template_does_not_read_is_refused_with_those_that_it_does() -> None:
    """It would change nothing, and nobody would know."""
    with pytest.raises(UnsupportedParameter, match="does not read greeting") as caught:
        render(SWITCH + "{% set mine = 1 %}{{ mine }}{{ bos_token }}", options='{"greeting": 1}')
    assert caught.value.hint == "It reads: enable_thinking."
    assert caught.value.param == "chat_template_kwargs.greeting"
    with pytest.raises(UnsupportedParameter) as caught:
        render(SAID, options='{"messages": []}')
    assert caught.value.hint == "It reads no options: leave them out."


@pytest.mark.parametrize("options", ["[1]", "{", "[" * 100_000])
def test_options_that_are_no_object_are_refused(options: str) -> None:
    """As they are in a request."""
    with pytest.raises(InvalidRequest, match="options of the chat template"):
        render(SAID, options=options)


def test_a_template_that_fails_over_a_switch_is_rendered_without_it() -> None:
    """An answer with too much thought is better than none."""
    source = SAID + "{% if enable_thinking is defined %}{{ raise_exception('never tried') }}{% endif %}"
    assert Rendered("x", ("thinking.is_on",)) == render(source, Thinking(is_on=False))
