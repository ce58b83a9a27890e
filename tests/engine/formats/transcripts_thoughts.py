"""Transcripts with thoughts: between tags, and on channels."""

from __future__ import annotations

from tests.engine.formats.transcript import CALL, Call, Transcript

THOUGHTS: tuple[Transcript, ...] = (
    # ── reasoning ────────────────────────────────────────────────────────────────────────────────────────
    Transcript("qwen3", "thoughts", "<think>\nHm.\n\nYes.\n</think>\n\nHello!\n", "Hello!\n", "Hm.\n\nYes."),
    Transcript("qwen3", "no thoughts", "Hello <b>!", "Hello <b>!"),
    Transcript("qwen3", "empty thoughts", "<think>\n\n</think>\n\nHello!", "Hello!"),
    Transcript("qwen3", "thoughts switched off", "Hello!", "Hello!", ending="<think>\n\n</think>\n\n"),
    Transcript("qwen3", "thoughts closed once more", "\n</think>\n\nHello!", "Hello!", ending="</think>\n\n"),
    Transcript("qwen3", "unclosed thoughts", "<think>\nHm. And <b\n", "", "Hm. And <b\n"),
    Transcript("qwen3", "white space alone", "\n \n", "\n \n"),
    Transcript(
        "qwen3",
        "nested thoughts",
        "<think>\na\n<think>\nb\n</think>\nc\n</think>\n\nd",
        "d",
        "a\n<think>\nb\n</think>\nc",
    ),
    Transcript("qwen3", "quoted tag in thoughts", "<think>\nThe <think> tag.\n</think>\n\nd", "d", "The <think> tag."),
    Transcript(
        "qwen3",
        "quoted tags in the answer",
        "Write `<think>` and </think>, or `<tool_call>`:\n```\n<think>\n<tool\n```\n",
        "Write `<think>` and </think>, or `<tool_call>`:\n```\n<think>\n<tool\n```\n",
    ),
    Transcript(
        "qwen3",
        "a call among thoughts stays a thought",
        '<think>\n<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>\n</think>\n\nNo.',
        "No.",
        '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>',
    ),
    Transcript("qwen3", "indentation of the answer is kept", "<think>\na\n</think>\n\n\n  x", "\n  x", "a"),
    Transcript(
        "deepseek-r1", "opened by the prompt", "Hm.\n</think>\n\nYes.", "Yes.", "Hm.", ending="<｜Assistant｜><think>\n"
    ),
    Transcript("deepseek-r1", "opened with no newline", "\nHm.\n</think>\nYes.", "Yes.", "Hm.", ending="<think>"),
    Transcript("deepseek-r1", "opened twice", "<think>\nHm.\n</think>\n\nYes.", "Yes.", "Hm.", ending="<think>\n"),
    Transcript("deepseek-r1", "opened and never closed", "Hm. Ye", "", "Hm. Ye", ending="<think>\n"),
    Transcript(
        "granite",
        "thoughts and a tagged answer",
        "<think>Hm.</think><response>Yes, <b>.</response>",
        "Yes, <b>.",
        "Hm.",
    ),
    Transcript(
        "command-r",
        "a plan, an action",
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "London"}},\n'
        '    {"tool_call_id": "1", "tool_name": "time.now-utc", "parameters": {}}\n]<|END_ACTION|>',
        calls=(CALL, Call("time.now-utc", "{}")),
    ),
    # ── harmony ──────────────────────────────────────────────────────────────────────────────────────────
    Transcript(
        "gpt-oss",
        "thoughts and an answer",
        "<|channel|>analysis<|message|>Hm.\n<|end|><|start|>assistant<|channel|>final<|message|>Hello <b>!\n",
        "Hello <b>!\n",
        "Hm.\n",
        ending="<|start|>assistant",
    ),
    Transcript(
        "gpt-oss",
        "a preamble and a call",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        '{"city": "London"}<|call|>',
        "I look.",
        "Hm.",
        (CALL,),
        ending="<|start|>assistant",
    ),
    Transcript(
        "gpt-oss",
        "a recipient in the role, two calls, one without arguments",
        ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "London"}<|call|><|start|>assistant'
        " to=functions.time.now-utc<|channel|>commentary <|constrain|>json<|message|><|call|>",
        calls=(CALL, Call("time.now-utc", "{}")),
        ending="<|start|>assistant",
    ),
    Transcript(
        "gpt-oss",
        "tools of its own are thoughts",
        "<|channel|>analysis to=python code<|message|>print(1)<|end|><|start|>assistant<|channel|>final<|message|>1",
        "1",
        "print(1)",
    ),
    Transcript(
        "gpt-oss",
        "a call that is no JSON",
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>London<|call|>",
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>London",
    ),
    Transcript(
        "gpt-oss",
        "a call without tools",
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{}",
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{}",
        has_tools=False,
    ),
    Transcript("gpt-oss", "opened by the prompt", "Hm.<|end|>", "", "Hm.", ending="<|channel|>analysis<|message|>"),
    Transcript("gpt-oss", "plain text", "Hello!<|return|>", "Hello!"),
    Transcript(
        "gpt-oss", "no end of the thoughts", "<|channel|>analysis<|message|>a<|channel|>final<|message|>b", "b", "a"
    ),
    Transcript("gpt-oss", "an answer that has not begun", "<|channel|>anal", ""),
    Transcript(
        "gpt-oss",
        "cut off in the recipient",
        "<|channel|>commentary to=functions.get_w",
        "<|channel|>commentary to=functions.get_w",
    ),
    Transcript(
        "llama-2",
        "a call as described in words",
        'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "London"}}\n</tool_call>',
        "I look.",
        calls=(CALL,),
    ),
    # ── from the markup alone ────────────────────────────────────────────────────────────────────────────
    Transcript(
        "generic",
        "a call",
        '<tool_call>{"name": "get_weather", "arguments": {"city": "London"}}</tool_call>',
        calls=(CALL,),
    ),
)
