from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from mlxm.engine.formats.families import GENERIC
from mlxm.errors import InvalidRequest
from mlxm.prep.renderer import Renderer
from mlxm.prep.template import ChatTemplate
from mlxm.types import Message, TextPart

Say = Callable[..., tuple[Message, ...]]

ROLES = "{% for message in messages %}{{ message.role }}={{ message.content }};{% endfor %}"


def render(source: str, messages: tuple[Message, ...], **special: str) -> str:
    """What a template makes of a conversation."""
    return Renderer(ChatTemplate(source, special), GENERIC).render(messages).text


def test_parts_of_text_are_joined_without_anything_between() -> None:
    """Templates that walk over parts print them so as well."""
    message = Message(role="user", content=(TextPart("one "), TextPart("two")))
    assert render(ROLES, (message,)) == "user=one two;"


def test_developer_becomes_system_where_the_template_does_not_know_it(say: Say) -> None:
    """An unknown role would be refused or printed as nothing."""
    assert render(ROLES, say(("developer", "be brief"))) == "system=be brief;"


@pytest.mark.parametrize("quoted", ["'developer'", '"developer"'])
def test_developer_stays_where_the_template_names_it(say: Say, quoted: str) -> None:
    """A template that tells the roles apart is given the true one."""
    source = "{% if messages[0].role == " + quoted + " %}known: {% endif %}" + ROLES
    assert render(source, say(("developer", "be brief"))) == "known: developer=be brief;"


def test_a_developer_in_prose_does_not_count_as_knowing_the_role(say: Say) -> None:
    """Prompts inside templates mention developers, too."""
    assert render("{# for the developer #}" + ROLES, say(("developer", "x"))) == "system=x;"


def test_names_reach_the_template_only_when_given(say: Say) -> None:
    """A key that is there without a value confuses templates that test for it."""
    source = "{% for message in messages %}{{ message.name if 'name' in message else '-' }}{% endfor %}"
    named = Message(role="user", content=(TextPart("x"),), name="Ada")
    assert render(source, (named, *say(("user", "y")))) == "Ada-"


def test_templates_that_walk_over_parts_only_are_given_parts(say: Say) -> None:
    """With a plain string they would print nothing of what the user said."""
    source = (
        "{% for message in messages %}{% for part in message.content %}"
        "{% if part.type == 'text' %}[{{ part.text }}]{% endif %}{% endfor %}{% endfor %}"
    )
    assert render(source, say(("user", "hello"))) == "[hello]"


def test_special_tokens_and_the_generation_prompt_can_be_printed(say: Say) -> None:
    """A missing token prints as nothing, as templates expect."""
    source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{% if add_generation_prompt %}>{% endif %}"
    assert render(source, say(("user", "x")), bos_token="<s>") == "<s>x>"


def test_tools_and_documents_are_none(say: Say) -> None:
    """Templates ask whether they are there before they use them."""
    assert render("{{ tools is none }} {{ documents is none }}", say(("user", "x"))) == "True True"


def test_tojson_escapes_neither_letters_nor_html(say: Say) -> None:
    """Prompts must hold the words that the model was trained on."""
    assert render("{{ messages | tojson }}", say(("user", "é<&'>"))) == '[{"role": "user", "content": "é<&\'>"}]'


def test_tojson_takes_indent_separators_and_sorting(say: Say) -> None:
    """Templates of tool-calling models pass them."""
    source = "{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}{{ [1] | tojson(indent=1) }}"
    assert render(source, say(("user", "x"))) == '{"a":2,"b":1}[\n 1\n]'


def test_blocks_leave_no_blank_lines(say: Say) -> None:
    """The line break after a block and the indent before it belong to the block."""
    assert render("a\n  {% if true %}\nb\n  {% endif %}\nc", say(("user", "x"))) == "a\nb\nc"


def test_loops_can_break_and_continue(say: Say) -> None:
    """Published templates use both."""
    skip, leave = "{% if n == 1 %}{% continue %}{% endif %}", "{% if n == 3 %}{% break %}{% endif %}"
    source = "{% for n in range(9) %}" + skip + leave + "{{ n }}{% endfor %}"
    assert render(source, say(("user", "x"))) == "02"


def test_generation_blocks_print_their_body_in_a_scope_of_their_own(say: Say) -> None:
    """They mark the assistant's words for training and mean nothing here."""
    source = "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}"
    assert render(source, say(("user", "x"))) == "21"


def test_today_is_the_local_date(say: Say) -> None:
    """Models are told the user's date."""
    before = datetime.now().astimezone().date()
    text = render("{{ strftime_now('%Y-%m-%d') }}", say(("user", "x")))
    assert text in {str(before), str(datetime.now().astimezone().date())}


def test_dicts_and_namespaces_can_be_built(say: Say) -> None:
    """They are the two ways for a template to keep something."""
    source = (
        "{% set box = namespace(n=dict(a=1), m=dict.fromkeys(['k'], 2)) %}{% set box.x = 3 %}"
        "{{ box.n.a }}{{ box.m.k }}{{ box.x }}"
    )
    assert render(source, say(("user", "x"))) == "123"


def test_what_the_template_refuses_is_told_in_its_own_words(say: Say) -> None:
    """The author of the template knows best what is wrong with the conversation."""
    with pytest.raises(InvalidRequest, match=r"refuses this conversation: System role not supported$") as caught:
        render("{{ raise_exception('System role not supported') }}", say(("user", "x")))
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% if", "unexpected 'end of template'"),
        ("{{ nothing.here }}", "'nothing' is undefined"),
        ("{{ 1 + 'a' }}", "unsupported operand type"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ {}['a'].b }}", "has no attribute 'a'"),
        ("{{ messages[0].content.index('absent') }}", "substring not found"),
        ("{{ undefined_name | tojson }}", "not JSON serializable"),
        ("{{ 'a' | no_such_filter }}", "No filter named 'no_such_filter'"),
        ("{{ range(10 ** 8) }}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "too many statically nested blocks"),
        ("{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}", "recursion"),
        ("{% include '/etc/hostname' %}", "no loader"),
        ("{% import 'os' as os %}", "no loader"),
        ("{% set box = namespace(_a=1) %}", "cannot be set"),
        ("{% set box = namespace() %}{% set box.__class__ = 1 %}", "cannot be set"),
        ("{{ messages.append(1) }}", "is unsafe"),
    ],
)
def test_every_way_to_fail_is_an_invalid_request_without_a_path(say: Say, source: str, words: str) -> None:
    """The message is the template's; where mlxm or Python lie on this disk is nobody's business."""
    with pytest.raises(InvalidRequest) as caught:
        render(source, say(("user", "x")))
    assert words in caught.value.message
    assert "/" not in caught.value.message.replace("/etc/hostname", "")
    assert "Traceback" not in caught.value.message


def test_words_of_a_template_are_harmless_for_terminals_and_frames(say: Say) -> None:
    """Line breaks, escape sequences and halves of characters are no part of a message, nor is a novel."""
    source = r"{{ raise_exception('a\r\nb\x1b[31m\ud800c' + 'x' * 9999) }}"
    with pytest.raises(InvalidRequest) as caught:
        render(source, say(("user", "x")))
    assert "conversation: a b [31m cxxx" in caught.value.message
    assert len(caught.value.message) < 600


def test_a_template_that_refuses_in_silence_is_still_answered(say: Say) -> None:
    """There is always a message."""
    with pytest.raises(InvalidRequest, match="it does not say why"):
        render("{{ raise_exception('') }}", say(("user", "x")))


def test_an_empty_conversation_is_refused() -> None:
    """A template would print a prompt for nothing."""
    with pytest.raises(InvalidRequest, match="empty"):
        render(ROLES, ())


@pytest.mark.parametrize(
    "attempt",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('touch MARKER').read() }}",
        "{{ lipsum.__globals__['os'].system('touch MARKER') }}",
        "{{ joiner.__init__.__globals__.__builtins__.open('MARKER', 'w') }}",
        "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__['json'].codecs.open('MARKER', 'w') }}",
        "{{ strftime_now.__globals__.datetime.sys.modules.os.system('touch MARKER') }}",
        "{{ tojson.__globals__.json.codecs.open('MARKER', 'w') }}",
        "{{ dict.__init__.__globals__.json.codecs.open('MARKER', 'w') }}",
        "{{ namespace.__init__.__globals__.json.codecs.open('MARKER', 'w') }}",
        "{{ namespace.__mro__[1].__init__.__globals__.os.system('touch MARKER') }}",
        "{{ (''|attr('__class__')).mro()[1].__subclasses__() }}",
        "{{ '{0.__class__.__mro__[1].__subclasses__}'.format('') | length + 'x' }}",
        "{{ ('{0.__class__}'|attr('format_map'))({'0': ''}).x.y }}",
        "{{ [''.__class__.__base__]|map('attr', '__subclasses__')|list + 1 }}",
        "{{ self.__init__.__globals__.os.system('touch MARKER') }}",
        "{{ (messages|map(attribute='__class__.__init__.__globals__')|list)[0].os.system('touch MARKER') }}",
        "{% set f = ''.join.__self__.__class__ %}{{ f.__mro__[1].__subclasses__() }}",
    ],
)
def test_no_attempt_to_break_out_does_anything(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: str
) -> None:
    """Each ends as a failed template, and the file it tries to make is never there."""
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "MARKER"
    with pytest.raises(InvalidRequest):
        render(attempt.replace("MARKER", str(marker)), say(("user", "x")))
    assert list(tmp_path.iterdir()) == []


def test_one_template_cannot_leave_anything_for_another() -> None:
    """What is set in one rendering is gone in the next."""
    template = ChatTemplate("{{ left is defined }}{% set left = 1 %}{{ left }}", {})
    assert template.print([]) == "False1"
    assert template.print([]) == "False1"
