"""Transcripts with calls between tags and in Python."""

from __future__ import annotations

from tests.engine.formats.transcript import CALL, Call, Transcript

TAGGED_CALLS: tuple[Transcript, ...] = (
    # ── arguments between tags ───────────────────────────────────────────────────────────────────────────
    Transcript(
        "qwen3-coder",
        "typed arguments",
        "I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nLondon\n\n</parameter>\n<parameter=days>\n2\n"
        "</parameter>\n<parameter=exact>\nTrue\n</parameter>\n<parameter=places>\n['a', \"b\"]\n</parameter>\n"
        "<parameter=note>\nNone\n</parameter>\n<parameter=other>\n7\n</parameter>\n</function>\n</tool_call>",
        "I look.",
        calls=(
            Call(
                "get_weather",
                '{"city": "London\\n", "days": 2, "exact": true, "places": ["a", "b"], "note": null, "other": "7"}',
            ),
        ),
    ),
    Transcript(
        "qwen3-coder",
        "values of other types than the schema's",
        '<tool_call>\n<function=get_weather>\n<parameter=city>\n</tool_call> "é\\\n</parameter>\n'
        "<parameter=days>\n2.5\n"
        "</parameter>\n<parameter=exact>\nmaybe\n</parameter>\n<parameter=places>\n[1, {2}]\n</parameter>\n"
        "</function>\n</tool_call>",
        calls=(
            Call(
                "get_weather",
                '{"city": "</tool_call> \\"é\\\\", "days": "2.5", "exact": "maybe", "places": "[1, {2}]"}',
            ),
        ),
    ),
    Transcript(
        "qwen3-coder",
        "no section, no parameters, two calls",
        "<function=time.now-utc>\n</function>\n<function=time.now-utc></function>",
        calls=(Call("time.now-utc", "{}"), Call("time.now-utc", "{}")),
    ),
    Transcript(
        "qwen3-coder",
        "cut off in a value",
        "<tool_call>\n<function=get_weather>\n<parameter=days>\n2\n</parameter>\n<parameter=city>\nLon\n",
        calls=(Call("get_weather", '{"days": 2, "city": "Lon\\n'),),
    ),
    Transcript(
        "qwen3-coder",
        "cut off in a value that is no text",
        "<tool_call>\n<function=get_weather>\n<parameter=days>\n12",
        calls=(Call("get_weather", '{"days": 12'),),
    ),
    Transcript(
        "qwen3-coder",
        "words where a parameter should be",
        "<tool_call>\n<function=get_weather>\n<parameter=days>\n1\n</parameter>\nwhat?\n</function>\n</tool_call>",
        "\nwhat?\n</function>\n</tool_call>",
        calls=(Call("get_weather", '{"days": 1}'),),
    ),
    Transcript(
        "qwen3-coder",
        "a key without an end",
        "<tool_call>\n<function=get_weather>\n<parameter=days",
        "<parameter=days",
        calls=(Call("get_weather", "{}"),),
    ),
    Transcript(
        "qwen3-coder",
        "a key that is far too long",
        f"<function=time.now-utc>\n<parameter={'x' * 300}>\n1\n</parameter>\n</function>",
        f"<parameter={'x' * 300}>\n1\n</parameter>\n</function>",
        calls=(Call("time.now-utc", "{}"),),
    ),
    Transcript(
        "qwen3-coder", "no name", "<tool_call>\n<function=>\n</function>", "<tool_call>\n<function=>\n</function>"
    ),
    Transcript(
        "glm-4.5",
        "typed arguments",
        "<think>Hm.</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>2</arg_value>\n"
        '<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n<arg_key>other</arg_key>\n<arg_value>{"a": 1}</arg_value>\n'
        "</tool_call>",
        reasoning="Hm.",
        calls=(Call("get_weather", '{"city": "2", "days": 2, "other": {"a": 1}}'),),
    ),
    Transcript(
        "glm-4.5",
        "compact",
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>London</arg_value></tool_call>"
        "<tool_call>time.now-utc</tool_call>",
        calls=(CALL, Call("time.now-utc", "{}")),
    ),
    Transcript("glm-4.5", "words in a tag", "<tool_call>so what\n</tool_call>", "<tool_call>so what\n</tool_call>"),
    Transcript(
        "minimax",
        "typed arguments",
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">London</parameter>\n'
        '<parameter name="days">2</parameter>\n</invoke>\n<invoke name="time.now-utc">\n'
        "</invoke>\n</minimax:tool_call>",
        calls=(Call("get_weather", '{"city": "London", "days": 2}'), Call("time.now-utc", "{}")),
    ),
    Transcript(
        "seed-oss",
        "thoughts and a call",
        "<seed:think>Hm.</seed:think>\n<seed:tool_call>\n<function=get_weather>\n<parameter=city>London</parameter>\n"
        "</function>\n</seed:tool_call>",
        reasoning="Hm.",
        calls=(CALL,),
    ),
    # ── Python ───────────────────────────────────────────────────────────────────────────────────────────
    Transcript(
        "lfm2",
        "a list",
        '<|tool_call_start|>[get_weather(city="London"), a.b(x={"y": true})]<|tool_call_end|>Checking.',
        "Checking.",
        calls=(CALL, Call("a.b", '{"x": {"y": true}}')),
    ),
    Transcript(
        "lfm2", "broken", "<|tool_call_start|>[f(1)]<|tool_call_end|>", "<|tool_call_start|>[f(1)]<|tool_call_end|>"
    ),
    *(
        Transcript("lfm2", f"no calls: {words}", text, text)
        for words in ("", "f(**a)", "f()()", "f(a=b)", "f(a={1})", "3", "f(", "x = f()")
        for text in (f"<|tool_call_start|>{words}<|tool_call_end|>",)
    ),
    Transcript(
        "gemma",
        "a fence",
        'I look.\n```tool_code\nprint(get_weather(city="London"))\n```',
        "I look.",
        calls=(CALL,),
    ),
    Transcript("gemma", "other code", '```tool_code\nx = "\\d"\n```\n', '```tool_code\nx = "\\d"\n```\n'),
    # ── Gemma 4 ─────────────────────────────────────────────────────────────────────────────────
    Transcript(
        "gemma-4",
        "thoughts and calls",
        "<|channel>thought\nHm.\n<channel|>I look."
        '<|tool_call>call:get_weather{city:<|"|>Lon"{}<|"|>,days: -2,places:[<|"|>a<|"|>,<|"|><|"|>],x:{y:true,z:null}}'
        "<tool_call|><|tool_call>call:time.now-utc{}<tool_call|>",
        "I look.",
        "Hm.",
        (
            Call("get_weather", '{"city":"Lon\\"{}","days": -2,"places":["a",""],"x":{"y":true,"z":null}}'),
            Call("time.now-utc", "{}"),
        ),
    ),
    Transcript(
        "gemma-4",
        "arguments in JSON, and no end",
        '<|tool_call>call:a{"x y": "\\n", z: odd}',
        calls=(Call("a", '{"x y": "\\n", "z": "odd"}'),),
    ),
    Transcript(
        "gemma-4",
        "arguments that break",
        '<|tool_call>call:a{b:1;c}<tool_call|><|tool_call>call:a{"b<tool_call|>',
        ';c}<tool_call|>"b<tool_call|>',
        calls=(Call("a", '{"b":1'), Call("a", "{")),
    ),
    Transcript(
        "gemma-4",
        "no call",
        "<|tool_call>a{}<tool_call|><|tool_call>call:a",
        "<|tool_call>a{}<tool_call|><|tool_call>call:a",
    ),
)
