from pathlib import Path
from typing import Any

import pytest

from mlxm.wire import openai_options
from mlxm.wire.openai_chat import ChatCompletionRequest
from mlxm.wire.openai_completions import TextCompletionRequest

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("request_type", [ChatCompletionRequest, TextCompletionRequest])
def test_every_field_is_on_the_page(request_type: Any) -> None:
    """A field that nobody can read about might as well not be there."""
    assert [name for name in request_type.__struct_fields__ if f"`{name}`" not in PAGE] == []


def test_every_tolerated_field_is_on_the_page() -> None:
    """So that nobody thinks it did something."""
    assert [name for name in sorted(openai_options.TOLERATED) if f"`{name}`" not in PAGE] == []
