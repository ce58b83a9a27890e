from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import pytest

from mlxm.engine.formats.families import recognise
from mlxm.errors import InvalidRequest
from mlxm.prep.options import PLAIN, RenderOptions
from mlxm.prep.renderer import Rendered, Renderer
from mlxm.prep.template import ChatTemplate
from mlxm.types import Message, ReasoningPart, Role, TextPart, Thinking, Tool, ToolCallPart
from tests.prep.chat_templates import ALL, Published

SCHEMA = '{"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}'
TOOL = Tool(name="get_weather", description="Tells the weather.", parameters=SCHEMA)
BARE = Tool(name="roll_dice")
TOOLS = RenderOptions(tools=(TOOL, BARE))
FOLDER = Path(os.environ.get("MLXM_CHAT_TEMPLATES", "absent"))
TYPES = {"istral": "mistral", "gemma": "gemma2", "Qwen3": "qwen3", "Qwen": "qwen2", "Phi": "phi3", "granite": "granite"}
PUBLISHED = {
    path.stem: Published(next((kind for sign, kind in TYPES.items() if sign in path.stem), "llama"), path.read_text())
    for path in sorted(FOLDER.glob("*.jinja"))
}
EVERY = ALL | PUBLISHED


def say(role: Role, text: str, name: str | None = None) -> Message:
    """A message that only says something."""
    return Message(role=role, content=(TextPart(text),), name=name)


def call(number: int, town: str = "Bern") -> ToolCallPart:
    """A call of the tool."""
    return ToolCallPart(id=f"call_{number}", name="get_weather", arguments=f'{{"town": "{town}"}}')


def assistant(*parts: str | ToolCallPart, thoughts: str | None = None) -> Message:
    """A message of the assistant, its parts in order."""
    thought = () if thoughts is None else (ReasoningPart(thoughts),)
    said = (TextPart(part) if isinstance(part, str) else part for part in parts)
    return Message(role="assistant", content=(*thought, *said))


def result(number: int, text: str, *, is_error: bool = False) -> Message:
    """What the tool returned."""
    return Message(role="tool", content=(TextPart(text),), tool_call_id=f"call_{number}", is_error=is_error)


SYSTEM, ASK, AGAIN = say("system", "Be brief."), say("user", "Question one?"), say("user", "Question two?")
CONVERSATIONS: dict[str, tuple[tuple[Message, ...], RenderOptions]] = {
    "without system": ((ASK, assistant("Answer one."), AGAIN), PLAIN),
    "with system": ((SYSTEM, ASK), PLAIN),
    "system and developer": ((SYSTEM, say("developer", "Be kind."), ASK), PLAIN),
    "late system": ((SYSTEM, ASK, assistant("Answer one."), say("system", "Be kind."), AGAIN), PLAIN),
    "only system": ((SYSTEM,), PLAIN),
    "tools": ((ASK,), TOOLS),
    "tools and system": ((SYSTEM, ASK), TOOLS),
    "result": ((SYSTEM, ASK, assistant(call(1)), result(1, "Result one.")), TOOLS),
    "result without tools": (
        (ASK, assistant(call(1)), result(1, "Result one."), assistant("So."), AGAIN),
        PLAIN,
    ),
    "two results": (
        (ASK, assistant(call(1), call(2, "Rome")), result(1, "Result one."), result(2, "Result two."), AGAIN),
        TOOLS,
    ),
    "two rounds": (
        (
            *(ASK, assistant(call(1)), result(1, "Result one.")),
            *(assistant(call(2, "Rome")), result(2, "Result two."), assistant("Answer one."), AGAIN),
        ),
        TOOLS,
    ),
    "same role twice": ((ASK, AGAIN, assistant("Answer one."), assistant("Answer two."), say("user", "Three?")), TOOLS),
    "greeting": ((assistant("Greeting."), ASK), PLAIN),
}


@cache
def renderer(published: Published) -> Renderer:
    """What renders with one of the templates."""
    template = ChatTemplate(published.source, {"bos_token": "<s>", "eos_token": "</s>"})
    return Renderer(template, recognise(published.model_type, published.source))


def render(name: str, *messages: Message, options: RenderOptions = PLAIN) -> Rendered:
    """What a template here makes of a conversation."""
    return renderer(EVERY[name]).render(messages, options)


def words(messages: tuple[Message, ...], options: RenderOptions) -> list[str]:
    """All that has to stand in the prompt."""
    found = [tool.name for tool in options.tools]
    for part in (part for message in messages for part in message.content):
        found += [part.name, re.findall(r"\w+", part.arguments)[-1]] if isinstance(part, ToolCallPart) else [part.text]
    return found


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", EVERY)
def test_every_template_takes_every_conversation_whole(name: str, kind: str) -> None:
    """Whatever a family lacks, its model is told all that is said."""
    messages, options = CONVERSATIONS[kind]
    rendered = render(name, *messages, options=options)
    assert [word for word in words(messages, options) if word not in rendered.text] == []
    assert rendered.unused == ()


@pytest.mark.parametrize("name", EVERY)
def test_every_template_can_go_on_with_the_last_message(name: str) -> None:
    """The prompt ends with the very words, trailing spaces too; the system is there as ever."""
    options = RenderOptions(continues_final=True)
    text = render(name, SYSTEM, ASK, assistant("The answer is "), options=options).text
    assert text.endswith("The answer is ")
    assert "Be brief." in text


@pytest.mark.parametrize("name", EVERY)
def test_results_stand_in_order_and_behind_their_calls(name: str) -> None:
    """Also where a message may have one call only."""
    messages, options = CONVERSATIONS["two results"]
    text = render(name, *messages, options=options).text
    places = [text.rindex(word) for word in ("Bern", "Rome", "Result one.", "Result two.", "Question two?")]
    assert places[0] < places[2] < places[3] < places[4]
    assert places[1] < places[3]


def test_gemma_hears_the_system_in_the_users_first_words() -> None:
    """It has no role for the system, and its users and models take turns."""
    text = render("gemma", SYSTEM, ASK, AGAIN).text
    expected = (
        "<s><start_of_turn>user\nBe brief.\n\nQuestion one?\n\nQuestion two?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert expected == text


def test_tools_are_described_where_the_template_knows_none() -> None:
    """In a notation that every family's answers are read for, and results come back in the same."""
    text = render("gemma", ASK, assistant("Let me see.", call(1)), result(1, "Sunny."), options=TOOLS).text
    assert '<tools>\n{"name": "get_weather", "description": "Tells the weather."' in text
    assert (
        "<start_of_turn>model\nLet me see.\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {"town": "Bern"}}\n</tool_call><end_of_turn>\n'
        "<start_of_turn>user\n<tool_response>\nSunny.\n</tool_response><end_of_turn>\n<start_of_turn>model\n"
    ) in text
    assert "json-tags" in renderer(ALL["gemma"])._family.tools


def test_calls_are_written_in_the_familys_way_where_only_they_are_missing() -> None:
    """Granite's template tells of tools and prints results, and forgets the calls between."""
    text = render("granite", ASK, assistant(call(1), call(2, "Rome")), result(1, "Sunny."), options=TOOLS).text
    one, two = (f'{{"name": "get_weather", "arguments": {call(1, town).arguments}}}' for town in ("Bern", "Rome"))
    assert f"<|tool_call|>[{one}, {two}]<|end_of_text|>" in text
    assert "<|start_of_role|>tool<|end_of_role|>Sunny.<|end_of_text|>" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3", '{"name": "get_weather", "arguments": {"town": "Bern"}}'),
        ("glm", "<arg_key>town</arg_key>\n<arg_value>Bern</arg_value>"),
        ("deepseek", '<｜tool▁sep｜>get_weather\n```json\n{"town": "Bern"}\n```'),
        ("llama3", '{"name": "get_weather", "parameters": {"town": "Bern"}}'),
        ("harmony", 'to=functions.get_weather<|channel|>commentary json<|message|>{"town": "Bern"}<|call|>'),
    ],
)
def test_arguments_come_as_the_template_wants_them(name: str, expected: str) -> None:
    """As an object or as a text; the other would be printed wrongly or not at all."""
    assert expected in render(name, ASK, assistant(call(1)), result(1, "Sunny."), options=TOOLS).text


@pytest.mark.parametrize("arguments", ["", "not JSON", '"a text"'])
def test_arguments_that_are_no_object_break_nothing(arguments: str) -> None:
    """Models write such things, and clients send them back."""
    made = ToolCallPart(id="call_1", name="get_weather", arguments=arguments)
    for name in ("qwen3", "deepseek", "gemma"):
        assert "Sunny." in render(name, ASK, assistant(made), result(1, "Sunny."), options=TOOLS).text


def test_ids_are_made_to_fit_and_tell_calls_apart() -> None:
    """Mistral takes nine letters and digits; a result keeps to its call, and an id that fits stays."""
    text = render("mistral", *CONVERSATIONS["two results"][0], options=TOOLS).text
    ids = re.findall(r'"id": "(\w+)"', text)
    assert [len(each) for each in ids] == [9, 9]
    assert [("Result one.", ids[0]), ("Result two.", ids[1])] == re.findall(r"\[TOOL_RESULTS\](.*?)\|(\w+)", text)
    fitting = ToolCallPart(id="abcdef123", name="get_weather", arguments="{}")
    assert '"id": "abcdef123"' in render("mistral", ASK, assistant(fitting), result(1, "x")).text


def test_one_call_a_message_is_followed_by_its_own_result() -> None:
    """Llama 3 refuses several calls, and harmony drops all but the first."""
    for name in ("llama3", "harmony"):
        text = render(name, *CONVERSATIONS["two results"][0], options=TOOLS).text
        places = [text.index(word) for word in ("Bern", "Result one.", "Rome", "Result two.")]
        assert sorted(places) == places


def test_words_before_a_call_stand_in_a_message_of_their_own_where_they_would_be_dropped() -> None:
    """As the template's author saw it a message either talks or calls."""
    text = render("llama3", ASK, assistant("Let me see.", call(1)), result(1, "Sunny."), options=TOOLS).text
    assert text.index("Let me see.<|eot_id|>") < text.index('{"name": "get_weather", "parameters"')


def test_words_and_thoughts_before_a_call_become_one_where_the_template_takes_one() -> None:
    """Harmony refuses both."""
    asked = (ASK, assistant("Let me see.", call(1), thoughts="Hm."), result(1, "Sunny."))
    assert "analysis<|message|>Hm.\n\nLet me see.<|end|>" in render("harmony", *asked, options=TOOLS).text


def test_earlier_thoughts_reach_the_templates_that_read_them() -> None:
    """Others leave them out, as their models were taught."""
    turns = (ASK, assistant("Answer.", thoughts="Hm."), AGAIN)
    assert "<think>\nHm.\n</think>\n\nAnswer." in render("qwen3", *turns).text
    assert "Hm." not in render("deepseek", *turns).text


def test_the_prompt_can_end_inside_the_thoughts() -> None:
    """A last message that has nothing else is gone on with where it thinks."""
    turns, options = (ASK, assistant(thoughts="I think ")), RenderOptions(continues_final=True)
    assert render("qwen3", *turns, options=options).text.endswith("<|im_start|>assistant\n<think>\nI think ")
    assert render("deepseek", *turns, options=options).text.endswith("<｜Assistant｜><think>\nI think ")
    with pytest.raises(InvalidRequest, match="no place") as caught:
        render("gemma", *turns, options=options)
    assert caught.value.param == "continue_final_message"


@pytest.mark.parametrize("last", [ASK, assistant("Let me see.", call(1))])
def test_only_words_of_the_assistant_can_be_gone_on_with(last: Message) -> None:
    """What else stands there is complete."""
    with pytest.raises(InvalidRequest, match="last message"):
        render("qwen3", ASK, last, options=RenderOptions(continues_final=True))


def test_the_system_is_not_forgotten_in_the_middle_of_a_round() -> None:
    """Mistral's templates print it with the user's last words, if those are the last."""
    text = render("mistral", SYSTEM, ASK, assistant(call(1)), result(1, "Sunny."), options=TOOLS).text
    assert "[INST]Be brief.\n\nQuestion one?[/INST]" in text


def test_several_words_of_the_system_become_one_where_the_last_would_win() -> None:
    """DeepSeek's templates keep one only."""
    assert render("deepseek", SYSTEM, say("developer", "Be kind."), ASK).text.startswith("<s>Be brief.\n\nBe kind.<")


def test_names_that_are_not_printed_are_told_of() -> None:
    """The model cannot know who speaks."""
    assert render("qwen3", say("user", "Hi.", name="Ada")).unused == ("messages.name",)


def test_a_failed_tool_is_told_as_such() -> None:
    """Once: many results say it themselves."""
    for text in ("No such town.", "Error: No such town."):
        rendered = render("qwen3", ASK, assistant(call(1)), result(1, text, is_error=True), options=TOOLS)
        assert "<tool_response>\nError: No such town.\n</tool_response>" in rendered.text


def test_parts_are_given_to_templates_that_walk_over_them() -> None:
    """For every role, and nothing for words that are not there."""
    text = render("vision", SYSTEM, ASK, assistant(), AGAIN).text
    expected = "<|system|>Be brief.<|end|><|user|>Question one?<|end|><|assistant|><|end|><|user|>Question two?<|end|>"
    assert f"{expected}<|assistant|>" == text


def test_thoughts_that_the_template_opens_are_closed_when_none_are_wanted() -> None:
    """Where there is no switch, the prompt itself says that the thinking is over."""
    off = RenderOptions(thinking=Thinking(is_on=False, effort="none"))
    rendered = render("deepseek", ASK, options=off)
    assert rendered.text.endswith("<｜Assistant｜><think>\n\n</think>\n\n")
    assert rendered.unused == ()
    assert render("deepseek", ASK, options=RenderOptions(thinking=Thinking(is_on=True))).unused == ()
    assert render("gemma", ASK, options=off).unused == ("thinking.is_on", "thinking.effort")


def test_what_the_template_says_of_the_conversation_as_it_was_is_told() -> None:
    """Not what it says of our attempts to mend it."""
    source = "{{ raise_exception('there are ' ~ messages | length) }}"
    with pytest.raises(InvalidRequest, match="there are 2"):
        renderer(Published("x", source)).render((ASK, AGAIN))


def test_schemas_are_completed_for_templates_that_print_all_of_them() -> None:
    """Concatenating what is not there fails."""
    source = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% for t in tools or [] %}{{ t.function.name }}"
        "{% for k, v in t.function.parameters.properties | items %}{{ k + ': ' + v.description }}{% endfor %}"
        "{% endfor %}"
    )
    tools = (TOOL, BARE, Tool(name="odd", parameters='{"type": "object"}'))
    rendered = renderer(Published("x", source)).render((ASK,), RenderOptions(tools=tools))
    assert rendered.text == "Question one?get_weathertown: roll_diceodd"
