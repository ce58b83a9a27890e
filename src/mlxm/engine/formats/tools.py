"""The named ways in which families write calls and thoughts, and how a chat template gives them away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from mlxm.engine.formats.calls import ToolFormat
from mlxm.engine.formats.gemma import GemmaCalls
from mlxm.engine.formats.json_calls import HeadedCalls, JsonCalls
from mlxm.engine.formats.python_calls import PythonCalls
from mlxm.engine.formats.tagged import TaggedCalls


class ReasoningTags(msgspec.Struct, frozen=True, kw_only=True):
    """The tags around thoughts, and the newlines that the templates print around the tags, which are markup too.

    Thoughts begin only where nothing of the answer stands before them: a tag among words is quoted.
    """

    open: str
    close: str
    after_open: str = "\n"
    before_close: str = "\n"
    after_close: str = "\n\n"
    answer: tuple[str, str] = ("", "")
    """Tags that some templates print around the answer behind the thoughts."""

    @property
    def markers(self) -> tuple[str, ...]:
        """The markup that special tokens may spell."""
        return tuple(filter(None, (self.open, self.close, *self.answer)))


REASONING: Final[Mapping[str, ReasoningTags]] = {
    "think": ReasoningTags(open="<think>", close="</think>"),
    "think-response": ReasoningTags(open="<think>", close="</think>", answer=("<response>", "</response>")),
    "reasoning": ReasoningTags(open="<reasoning>", close="</reasoning>"),
    "thinking": ReasoningTags(open="<thinking>", close="</thinking>"),
    "bracket-think": ReasoningTags(open="[THINK]", close="[/THINK]", after_open="", before_close="", after_close=""),
    "seed": ReasoningTags(open="<seed:think>", close="</seed:think>"),
    "longcat": ReasoningTags(open="<longcat_think>", close="</longcat_think>"),
    "cohere": ReasoningTags(
        open="<|START_THINKING|>",
        close="<|END_THINKING|>",
        after_open="",
        before_close="",
        after_close="",
        answer=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    "gemma-channel": ReasoningTags(open="<|channel>thought", close="<channel|>", after_close=""),
}

_KIMI_HEAD: Final = r"\s*(?P<id>(?:functions\.)?(?P<name>[\w.-]+?):\d+)\s*<\|tool_call_argument_begin\|>\s*"
_DEEPSEEK_HEAD: Final = (
    r"\s*(?:function<｜tool▁sep｜>(?P<name>[\w.-]+)\s*```(?:json)?|(?P<name_first>[\w.-]+)<｜tool▁sep｜>)\s*"
)
_MISTRAL_HEAD: Final = r"\s*(?P<name>[\w.-]+)\s*(?:\[CALL_ID\]\s*(?P<id>\w+)\s*)?(?:\[ARGS\]\s*)?"

_FORMATS: Final[tuple[ToolFormat, ...]] = (
    JsonCalls(name="json-tags", opens=("<tool_call>",), close="</tool_call>", before="\n", pad="\n"),
    JsonCalls(name="llama-json", opens=("<|python_tag|>",), also_bare=True, keys=("name", "parameters")),
    JsonCalls(name="mistral-list", opens=("[TOOL_CALLS]",), writes_list=True),
    JsonCalls(name="granite-list", opens=("<|tool_call|>",), writes_list=True),
    JsonCalls(name="phi-list", opens=("<|tool_call|>",), close="<|/tool_call|>", writes_list=True),
    JsonCalls(name="functools", opens=("functools",), before=" ", writes_list=True),
    JsonCalls(
        name="cohere-action",
        opens=("<|START_ACTION|>",),
        close="<|END_ACTION|>",
        keys=("tool_name", "parameters"),
        writes_list=True,
    ),
    JsonCalls(
        name="cohere-fence",
        opens=("Action:\n```json", "Action: ```json", "Action:```json"),
        close="```",
        before="\n",
        pad="\n",
        keys=("tool_name", "parameters"),
        writes_list=True,
    ),
    HeadedCalls(
        name="mistral-args",
        opens=("[TOOL_CALLS]",),
        head=_MISTRAL_HEAD,
        head_markers=("[CALL_ID]", "[ARGS]"),
        writes=("{name}[ARGS]", ""),
        goes_on_bare=True,
    ),
    HeadedCalls(
        name="deepseek",
        section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        opens=("<｜tool▁call▁begin｜>",),
        head=_DEEPSEEK_HEAD,
        close="<｜tool▁call▁end｜>",
        head_markers=("<｜tool▁sep｜>",),
        writes=("function<｜tool▁sep｜>{name}\n```json\n", "\n```"),
        before="\n",
    ),
    HeadedCalls(
        name="deepseek-bare",
        section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        opens=("<｜tool▁call▁begin｜>",),
        head=_DEEPSEEK_HEAD,
        close="<｜tool▁call▁end｜>",
        head_markers=("<｜tool▁sep｜>",),
        writes=("{name}<｜tool▁sep｜>", ""),
    ),
    HeadedCalls(
        name="kimi",
        section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        opens=("<|tool_call_begin|>",),
        head=_KIMI_HEAD,
        close="<|tool_call_end|>",
        head_markers=("<|tool_call_argument_begin|>",),
        writes=("functions.{name}:{index}<|tool_call_argument_begin|>", ""),
    ),
    HeadedCalls(
        name="functionary",
        opens=("<function=",),
        head=r"(?P<name>[\w.-]+)>\s*",
        close="</function>",
        writes=("{name}>", ""),
    ),
    HeadedCalls(name="glm-plain", named_by_tool="\n", head=r"(?P<name>[\w.-]+)\s*", writes=("{name}\n", "")),
    TaggedCalls(
        name="qwen-xml",
        section=("<tool_call>", "</tool_call>"),
        open="<function=",
        name_ends=(">",),
        key_open="<parameter=",
        key_end=">",
        value_close="</parameter>",
        close="</function>",
        before="\n",
        pads_values=True,
    ),
    TaggedCalls(
        name="seed-xml",
        section=("<seed:tool_call>", "</seed:tool_call>"),
        open="<function=",
        name_ends=(">",),
        key_open="<parameter=",
        key_end=">",
        value_close="</parameter>",
        close="</function>",
        before="\n",
    ),
    TaggedCalls(
        name="glm-xml",
        section=("<tool_call>", ""),
        open="",
        name_ends=("\n",),
        key_open="<arg_key>",
        key_end="</arg_key> <arg_value>",
        value_close="</arg_value>",
        close="</tool_call>",
        before="\n",
        untyped_is_text=False,
    ),
    TaggedCalls(
        name="longcat-xml",
        section=("<longcat_tool_call>", ""),
        open="",
        name_ends=("\n",),
        key_open="<longcat_arg_key>",
        key_end="</longcat_arg_key> <longcat_arg_value>",
        value_close="</longcat_arg_value>",
        close="</longcat_tool_call>",
        before="\n",
        untyped_is_text=False,
    ),
    JsonCalls(name="longcat-json", opens=("<longcat_tool_call>",), close="</longcat_tool_call>", before="\n"),
    TaggedCalls(
        name="minimax-xml",
        section=("<minimax:tool_call>", "</minimax:tool_call>"),
        open="<invoke name=",
        name_ends=(">",),
        key_open="<parameter name=",
        key_end=">",
        quote='"',
        value_close="</parameter>",
        close="</invoke>",
        before="\n",
    ),
    TaggedCalls(
        name="deepseek-xml",
        section=("<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),
        open="<｜DSML｜invoke name=",
        name_ends=(">",),
        key_open="<｜DSML｜parameter name=",
        key_end=">",
        quote='"',
        value_close="</｜DSML｜parameter>",
        close="</｜DSML｜invoke>",
        before="\n\n",
    ),
    TaggedCalls(
        name="minicpm-xml",
        open="<function name=",
        name_ends=(">",),
        key_open="<param name=",
        key_end=">",
        value_close="</param>",
        close="</function>",
        before="\n",
        quote='"',
    ),
    TaggedCalls(
        name="atem-xml",
        section=("<atem:function_calls>", "</atem:function_calls>"),
        open="<atem:invoke name=",
        name_ends=(">",),
        key_open="<atem:parameter name=",
        key_end=">",
        value_close="</atem:parameter>",
        close="</atem:invoke>",
        before="\n",
        untyped_is_text=False,
        quote='"',
    ),
    GemmaCalls(name="gemma-calls", open="<|tool_call>", close="<tool_call|>", quote='<|"|>'),
    GemmaCalls(name="function-gemma", open="<start_function_call>", close="<end_function_call>", quote="<escape>"),
    PythonCalls(name="python-list", also_bare=True),
    PythonCalls(name="python-tags", open="<|tool_call_start|>", close="<|tool_call_end|>"),
    PythonCalls(name="python-fence", open="```tool_code\n", close="```", before="\n"),
)
TOOLS: Final[Mapping[str, ToolFormat]] = {form.name: form for form in _FORMATS}

TOOL_SIGNS: Final[tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = (
    (("<｜DSML｜",), ("deepseek-xml",)),
    (("<minimax:tool_call>",), ("minimax-xml",)),
    (("<seed:tool_call>",), ("seed-xml",)),
    (("<longcat_tool_call>",), ("longcat-json", "longcat-xml")),
    (("<atem:function_calls>",), ("atem-xml",)),
    (('<function name="', '<param name="'), ("minicpm-xml",)),
    (("<|tool_call>", "<tool_call|>"), ("gemma-calls",)),
    (("<start_function_call>",), ("function-gemma",)),
    (("<arg_key>",), ("glm-xml", "json-tags")),
    (("<|tool_calls_section_begin|>",), ("kimi",)),
    (("<｜tool▁calls▁begin｜>", "```json"), ("deepseek",)),
    (("<｜tool▁calls▁begin｜>",), ("deepseek-bare",)),
    (("<|START_ACTION|>",), ("cohere-action",)),
    (("Action:", "```json"), ("cohere-fence",)),
    (("<|tool_call_start|>",), ("python-tags",)),
    (("<|tool_list_start|>",), ("python-tags",)),
    (("<tool_call>", "<function=", "<parameter="), ("qwen-xml", "json-tags")),
    (("<tool_call>",), ("json-tags", "qwen-xml")),
    (("[TOOL_CALLS]", "[ARGS]"), ("mistral-args", "mistral-list")),
    (("[TOOL_CALLS]",), ("mistral-list", "mistral-args")),
    (("<|tool_call|>", "<|/tool_call|>"), ("phi-list",)),
    (("<|tool|>", "<|/tool|>"), ("phi-list", "functools")),
    (("<|tool_call|>",), ("granite-list",)),
    (("functools",), ("functools",)),
    (("<function", "</function>"), ("functionary",)),
    (('"parameters": ', "ipython"), ("llama-json",)),
    (("<|python_tag|>",), ("llama-json",)),
)
"""What all has to be in a chat template for calls to be written so; the first that fits is it."""

REASONING_SIGNS: Final[tuple[tuple[tuple[str, ...], str], ...]] = (
    (("<|START_THINKING|>", "<|END_THINKING|>"), "cohere"),
    (("<seed:think>",), "seed"),
    (("<longcat_think>",), "longcat"),
    (("<|channel>thought",), "gemma-channel"),
    (("[THINK]", "[/THINK]"), "bracket-think"),
    (("<think>", "<response>"), "think-response"),
    (("</think>",), "think"),
    (("</reasoning>",), "reasoning"),
    (("</thinking>",), "thinking"),
)
"""The same for thoughts; here the tokenizer's added tokens tell as well."""
