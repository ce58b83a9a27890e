from pathlib import Path

import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from mlxm.device.narrow import Narrowed
from mlxm.errors import InternalError
from tests.device.driver import tiny


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "granite", "cohere", "gemma3n", "gpt2"])
def test_the_first_tokens_get_the_logits_that_they_get_among_all(architecture: str, folder: Path) -> None:
    """Whatever the head does after the body: tied or not, scaled, capped, inside of a wrapper."""
    model = tiny(architecture, folder).model
    tokens = mx.array([[300], [301], [302], [303]])
    expected = model(tokens, cache=make_prompt_cache(model))[:2]
    found = Narrowed(model)(2, tokens, make_prompt_cache(model))
    assert found.shape == expected.shape
    assert mx.allclose(expected, found, atol=1e-5)


def test_the_model_stays_as_it_is(folder: Path) -> None:
    """It gives all logits afterwards as before."""
    model = tiny("llama", folder).model
    Narrowed(model)(1, mx.array([[300], [301]]), make_prompt_cache(model))
    assert model(mx.array([[300], [301]]), cache=make_prompt_cache(model)).shape[0] == 2


def test_a_model_without_a_body_that_is_known_cannot_be_narrowed() -> None:
    """Then rows and chunks are computed apart."""
    with pytest.raises(InternalError, match="no name that is known"):
        Narrowed(nn.Sequential(nn.Linear(2, 2)))
