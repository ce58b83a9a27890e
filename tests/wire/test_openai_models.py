from typing import Any

import msgspec
import pytest

from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.types import ChatRequest, CompletionRequest, Message, ModelInfo, TextPart, Tool
from mlxm.wire import openai_models
from mlxm.wire.openai_models import read_detokenize, read_tokenize

USER = {"role": "user", "content": "Hi"}


def body(**fields: Any) -> bytes:
    """A request of which some fields are given."""
    return msgspec.json.encode({"model": "m", **fields})


def test_a_model_says_what_it_is() -> None:
    """An alias names the model behind it, and has its owner."""
    info = ModelInfo(name="mine", target="owner/model", created_s=5, context_length=4096, is_loaded=True)
    assert msgspec.json.decode(openai_models.model(info)) == {
        "id": "mine",
        "object": "model",
        "created": 5,
        "owned_by": "owner",
        "root": "owner/model",
        "state": "loaded",
        "context_length": 4096,
        "max_model_len": 4096,
    }


def test_models_are_listed() -> None:
    """One without an owner belongs to mlxm."""
    listed = msgspec.json.decode(openai_models.model_list([ModelInfo(name="plain"), ModelInfo(name="a/b")]))
    assert listed["object"] == "list"
    assert [(each["id"], each["owned_by"], each["state"]) for each in listed["data"]] == [
        ("plain", "mlxm", "available"),
        ("a/b", "a", "available"),
    ]


def test_a_text_to_tokenize() -> None:
    """With the tokens that the tokenizer adds, or without."""
    asked = read_tokenize(body(prompt="Hi", add_special_tokens=False))
    assert asked.to_request("r") == CompletionRequest(request_id="r", model="m", prompt="Hi")
    assert asked.is_bare
    assert not read_tokenize(body(prompt="")).is_bare


def test_a_conversation_to_tokenize() -> None:
    """As if it were to be answered."""
    function = {"type": "function", "function": {"name": "f"}}
    asked = read_tokenize(
        body(messages=[USER], tools=[function], chat_template_kwargs={"a": 1}, return_token_strs=False)
    )
    assert asked.to_request("r") == ChatRequest(
        request_id="r",
        model="m",
        messages=(Message(role="user", content=(TextPart("Hi"),)),),
        tools=(Tool(name="f"),),
        template_options='{"a":1}',
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": [USER]}, "prompt"),
        ({"prompt": "a", "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"prompt": "a", "chat_template_kwargs": {}}, "chat_template_kwargs"),
        ({"messages": [USER], "add_special_tokens": True}, "add_special_tokens"),
        ({"messages": [USER], "continue_final_message": True}, "continue_final_message"),
        ({"messages": [{**USER, "x": 1}]}, "messages[0].x"),
        ({"prompt": "a", "return_token_strs": True}, "return_token_strs"),
        ({"prompt": "a", "x": 1}, "x"),
    ],
)
def test_what_cannot_be_tokenized(fields: dict[str, Any], param: str) -> None:
    """Both or neither of the two, and fields of the other one."""
    with pytest.raises(InvalidRequest) as caught:
        read_tokenize(body(**fields))
    assert caught.value.param == param


def test_tokens_to_detokenize() -> None:
    """Ids, and nothing else."""
    assert read_detokenize(body(tokens=[1, 2])).tokens == (1, 2)
    with pytest.raises(InvalidRequest):
        read_detokenize(body(tokens=[-1]))
    with pytest.raises(UnsupportedParameter):
        read_detokenize(body(tokens=[], x=1))
