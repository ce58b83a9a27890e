from pathlib import Path
from typing import Any

import pytest

from mlxm.wire import anthropic_messages, openai_options, openai_responses
from mlxm.wire.anthropic_messages import MessagesRequest
from mlxm.wire.openai_chat import ChatCompletionRequest
from mlxm.wire.openai_completions import TextCompletionRequest
from mlxm.wire.openai_responses import ResponsesRequest

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "request_type", [ChatCompletionRequest, TextCompletionRequest, MessagesRequest, ResponsesRequest]
)
def test_every_field_is_on_the_page(request_type: Any) -> None:
    """A field that nobody can read about might as well not be there."""
    assert [name for name in request_type.__struct_fields__ if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("dialect", [openai_options, anthropic_messages, openai_responses])
def test_every_tolerated_field_is_on_the_page(dialect: Any) -> None:
    """So that nobody thinks it did something."""
    assert [name for name in sorted(dialect.TOLERATED) if f"`{name}`" not in PAGE] == []
