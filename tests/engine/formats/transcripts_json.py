"""Transcripts with calls in JSON."""

from __future__ import annotations

from tests.engine.formats.transcript import CALL, HARD, LONDON, Call, Transcript

JSON_CALLS: tuple[Transcript, ...] = (
    # ── JSON between tags ────────────────────────────────────────────────────────────────────────────────
    Transcript(
        "qwen3",
        "thoughts, words, two equal calls",
        "<think>\nHm.\n</think>\n\nI look.\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "London"}}\n</tool_call>\n<tool_call>\n'
        '{"name": "get_weather", "arguments": {"city": "London"}}\n</tool_call>\n',
        "I look.",
        "Hm.",
        (CALL, CALL),
    ),
    Transcript(
        "qwen2",
        "look-alikes in arguments",
        f'<tool_call>\n{{"name": "get_weather", "arguments": {HARD}}}\n</tool_call>',
        calls=(Call("get_weather", HARD),),
    ),
    Transcript(
        "qwen2",
        "text after a call",
        'One\n\n<tool_call>{"name": "time.now-utc", "arguments": {}}</tool_call>\nTwo',
        "One\n\nTwo",
        calls=(Call("time.now-utc", "{}"),),
    ),
    Transcript(
        "hermes",
        "arguments before the name",
        '<tool_call>\n{"arguments": {"city": "London"}, "name": "get_weather"}\n</tool_call>',
        calls=(CALL,),
    ),
    Transcript(
        "hermes",
        "a tool nobody offered",
        '<tool_call>{"name": "rm -rf", "arguments": {"x": 1}}</tool_call>',
        calls=(Call("rm -rf", '{"x": 1}'),),
    ),
    Transcript(
        "hermes",
        "arguments as a string, none, null, and within a function",
        '<tool_call>{"name": "a", "arguments": "{\\"x\\": \\"\\u00e9\\"}"}</tool_call>'
        '<tool_call>{"name": "b"}</tool_call><tool_call>{"name": "c", "arguments": null}</tool_call>'
        '<tool_call>{"type": "function", "function": {"name": "d", "arguments": {"y": []}}, "id": "e"}</tool_call>',
        calls=(Call("a", '{"x": "é"}'), Call("b", "{}"), Call("c", "{}"), Call("d", '{"y": []}')),
    ),
    Transcript(
        "hermes",
        "an id before the arguments, used twice",
        '<tool_call>{"id": "x1", "name": "a", "arguments": {}}</tool_call>'
        '<tool_call>{"id": "x1", "name": "a", "arguments": {}}</tool_call>',
        calls=(Call("a", "{}", "x1"), Call("a", "{}")),
    ),
    Transcript(
        "hermes",
        "a brace too many, a brace too few, no closing tag",
        '<tool_call>{"name": "a", "arguments": {"x": 1}}}</tool_call>\n<tool_call>{"name": "b", "arguments": {"x": 2}'
        '</tool_call>\n<tool_call>{"name": "c", "arguments": {"x": 3</tool_call>'
        '<tool_call>{"name": "d", "arguments": {}}',
        calls=(Call("a", '{"x": 1}'), Call("b", '{"x": 2}'), Call("c", '{"x": 3'), Call("d", "{}")),
    ),
    Transcript(
        "hermes",
        "broken calls are text",
        '<tool_call>{"name": "a", "arguments": [1]}</tool_call><tool_call>{name: "b"}</tool_call>'
        "<tool_call>[]</tool_call>",
        '<tool_call>{"name": "a", "arguments": [1]}</tool_call><tool_call>{name: "b"}</tool_call>'
        "<tool_call>[]</tool_call>",
    ),
    *(
        Transcript("hermes", f"no call: {words}", text, text)
        for words in (
            *(
                '{"type": }',
                '{"name" 1}',
                '{"name": "a" 1}',
                '{"arguments": {}}',
                '{"name": "a", "arguments": 7}',
                "[{",
            ),
            *(
                '{"name": "a", "arguments": "x"}',
                '{"name": "a", "arguments": "7"}',
                '{"name": "a", "arguments": {x: 1}}',
            ),
            *('{"name": "a", "x": {"arguments": {}}}', '{"name": "a\\q"}', "", "{}", '{"id": {"a": [1}'),
        )
        for text in (f"<tool_call>{words}</tool_call>",)
    ),
    Transcript(
        "hermes",
        "a call behind a tag that begins none",
        '<tool_call><tool_call>{"name": "a", "arguments": {}}</tool_call>',
        "<tool_call>",
        calls=(Call("a", "{}"),),
    ),
    Transcript(
        "hermes",
        "cut off in the name",
        'Well.\n<tool_call>\n{"name": "get_wea',
        'Well.\n<tool_call>\n{"name": "get_wea',
    ),
    Transcript(
        "hermes",
        "cut off in the arguments",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Lon\\',
        calls=(Call("get_weather", '{"city": "Lon\\'),),
    ),
    Transcript(
        "hermes",
        "no tools, no calls",
        '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>',
        has_tools=False,
    ),
    Transcript(
        "granite",
        "a list",
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "London"}}, '
        '{"name": "time.now-utc", "arguments": {}}]',
        calls=(CALL, Call("time.now-utc", "{}")),
    ),
    Transcript(
        "granite",
        "a list that breaks",
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "London"}}, {"name": 7}]',
        ', {"name": 7}]',
        calls=(CALL,),
    ),
    Transcript(
        "phi",
        "a list with an end",
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "London"}}]<|/tool_call|>',
        calls=(CALL,),
    ),
    Transcript(
        "firefunction",
        "functools",
        'Use functools, OK. functools[{"name": "get_weather", "arguments": {"city": "London"}}]',
        "Use functools, OK.",
        calls=(CALL,),
    ),
    Transcript(
        "command-r",
        "an action in a fence",
        'Action: ```json\n[\n    {\n        "tool_name": "get_weather",\n'
        '        "parameters": {"city": "London"}\n    }\n]```',
        calls=(CALL,),
    ),
    # ── JSON behind a head ───────────────────────────────────────────────────────────────────────────────
    Transcript("llama-3", "a bare call", '{"name": "get_weather", "parameters": {"city": "London"}}', calls=(CALL,)),
    Transcript(
        "llama-3",
        "bare calls with semicolons",
        '{"name": "get_weather", "parameters": {"city": "London"}}; {"type": "function", "name": "time.now-utc", '
        '"parameters": {}}\n',
        calls=(CALL, Call("time.now-utc", "{}")),
    ),
    Transcript(
        "llama-3",
        "a marked call",
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "London"}}',
        calls=(CALL,),
    ),
    Transcript("llama-3", "marked code is text", "<|python_tag|>print(1)", "<|python_tag|>print(1)"),
    Transcript(
        "llama-3",
        "an answer in JSON",
        '{"name": "Alice", "parameters": {"age": 3}}',
        '{"name": "Alice", "parameters": {"age": 3}}',
    ),
    Transcript(
        "llama-3", "another answer in JSON", '{"name": "get_weather", "x": [1]}', '{"name": "get_weather", "x": [1]}'
    ),
    Transcript(
        "llama-3",
        "a list of Python calls",
        "[get_weather(city='[L\\'', days=2, exact=True, places=[\"a]\", null]), time.now-utc()]",
        "[get_weather(city='[L\\'', days=2, exact=True, places=[\"a]\", null]), time.now-utc()]",
    ),
    Transcript(
        "llama-3",
        "a list of one Python call",
        "[get_weather(city='[L\\'', days=2, exact=True, places=[\"a]\", null])]",
        calls=(Call("get_weather", '{"city": "[L\'", "days": 2, "exact": true, "places": ["a]", null]}'),),
    ),
    Transcript("llama-3", "an unfinished list", "[get_weather(city=[1, 2", "[get_weather(city=[1, 2"),
    Transcript(
        "mistral",
        "a list",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "London"}, "id": "abcdefghi"}, '
        '{"name": "time.now-utc", "arguments": {}}]',
        calls=(CALL, Call("time.now-utc", "{}")),
    ),
    Transcript(
        "mistral",
        "heads",
        'I look.[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "London"}[TOOL_CALLS]time.now-utc[ARGS]{}',
        "I look.",
        calls=(Call("get_weather", LONDON, "abcdefghi"), Call("time.now-utc", "{}")),
    ),
    Transcript(
        "mistral",
        "heads with one marker, and text behind",
        '[TOOL_CALLS]get_weather[ARGS]{"city": "London"}time.now-utc[ARGS]{} So.',
        " So.",
        calls=(CALL, Call("time.now-utc", "{}")),
    ),
    Transcript(
        "mistral", "a marker in prose", "The [TOOL_CALLS] marker (see [1]).", "The [TOOL_CALLS] marker (see [1])."
    ),
    Transcript(
        "deepseek-r1",
        "calls in fences",
        "Hm.\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "London"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time.now-utc\n```json\n'
        "{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        reasoning="Hm.",
        calls=(CALL, Call("time.now-utc", "{}")),
        ending="<think>\n",
    ),
    Transcript(
        "deepseek-v3",
        "calls",
        'I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "London"}'
        "<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>time.now-utc<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "I look.",
        calls=(CALL, Call("time.now-utc", "{}")),
    ),
    Transcript(
        "deepseek-v3",
        "calls in tags",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">'
        "London"
        '</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls>",
        calls=(Call("get_weather", '{"city": "London", "days": 2}'),),
    ),
    Transcript(
        "kimi-k2",
        "calls",
        "I look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "London"}<|tool_call_end|><|tool_call_begin|>functions.time.now-utc:1<|tool_call_argument_begin|>{}'
        "<|tool_call_end|><|tool_calls_section_end|>",
        "I look.",
        calls=(
            Call("get_weather", LONDON, "functions.get_weather:0"),
            Call("time.now-utc", "{}", "functions.time.now-utc:1"),
        ),
    ),
    Transcript(
        "kimi-k2",
        "a section that breaks",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.a:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_call_begin|>what<|tool_calls_section_end|>",
        "<|tool_call_begin|>what<|tool_calls_section_end|>",
        calls=(Call("a", "{}", "functions.a:0"),),
    ),
    Transcript(
        "functionary",
        "a call in a tag",
        'Hm <function=x\n<function=get_weather>{"city": "London"}</function>',
        "Hm <function=x\n",
        calls=(CALL,),
    ),
    Transcript("glm-4", "a name on a line", 'get_weather\n{"city": "London"}', calls=(CALL,)),
    Transcript("glm-4", "a name in prose", "get_weather\nis a tool.", "get_weather\nis a tool."),
)
