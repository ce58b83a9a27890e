"""Run as a program: loads models with mlx-lm, generates greedily, and writes what it saw as JSON.

`python greedy.py NAME=FOLDER...`; one process for all models, since importing mlx-lm takes longer than a tiny model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from tokenizers import Tokenizer

PROMPTS = (
    "Tell me a story about the sea. It was a long day and the sun was high over the water.",
    "Say me a story about the sea. It was a long day and the sun was high over the water.",
)
MESSAGES = [{"role": "user", "content": "What is the weather like today?"}]
NUM_TOKENS = 16


def greedy(model: Any, prompt_ids: list[int]) -> tuple[list[int], bool]:
    """The tokens that follow a prompt, and whether every number was finite."""
    tokens, finite = [], True
    for token, logprobs in generate_step(mx.array(prompt_ids), model, max_tokens=NUM_TOKENS):
        tokens.append(int(token))
        finite = finite and bool(mx.isfinite(logprobs).all().item())
    return tokens, finite


def first_token_effect(model: Any, prompts: list[list[int]]) -> float:
    """How far apart the last logits of two prompts are that differ in their first word, in standard deviations."""
    left, right = (model(mx.array([ids]), cache=make_prompt_cache(model))[0, -1] for ids in prompts)
    return float((mx.abs(left - right).max() / left.std()).item())


def examine(folder: Path) -> dict[str, Any]:
    """What one model does."""
    model, tokenizer = load(str(folder))
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = [plain.encode(text).ids for text in PROMPTS]
    answers = [greedy(model, ids) for ids in prompts]
    return {
        "tokens": [tokens for tokens, _ in answers],
        "finite": all(finite for _, finite in answers),
        "first_token_effect": first_token_effect(model, prompts),
        "same_ids": prompts == [tokenizer.encode(text) for text in PROMPTS],
        "eos_ids": sorted(tokenizer.eos_token_ids),
        "prompt": tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False),
        "caches": [type(cache).__name__ for cache in make_prompt_cache(model)],
    }


if __name__ == "__main__":
    pairs = (argument.partition("=") for argument in sys.argv[1:])
    json.dump({name: examine(Path(folder)) for name, _, folder in pairs}, sys.stdout)
