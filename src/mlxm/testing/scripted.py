"""Builds a real model that says exactly what it is told to: its weights are a table of which token follows which.

A llama whose layer adds nothing: what comes next depends on the last token alone. Each token of the answers stands in
only one place of them, so texts are cut into pieces that are tokens of their own.

    answers = {"<|answer_0|>": "Let me see."}      the prompt's last token → the answer to it
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlxm.errors import InvalidRequest
from mlxm.testing.shapes import CONTEXT, tiny_config
from mlxm.tiny.families import Family
from mlxm.tiny.tokenizer import FIRST_SPECIAL_ID, VOCAB_SIZE, spell, token_ids, tokenizer_data, vocabulary
from mlxm.tiny.weights import write_safetensors

ANSWER_TOKENS: Final = tuple(f"<|answer_{number}|>" for number in range(4))
"""Special tokens for templates to end prompts with: each can have an answer of its own."""
CHOOSE_ANSWER: Final = (
    "{% if add_generation_prompt %}<|answer_{{ messages | selectattr('role', 'equalto', 'tool') | list | length }}|>"
    "{% endif %}"
)
"""For the end of a template: the answer's number is how many results of tools there are."""

_WITH_HEAD_NORMS: Final = ("qwen3",)
"""Model types that need more weights than a llama."""
_HIDDEN: Final = 256
_PIECE_BYTES: Final = 4
_END_GAIN: Final = 100.0
"""More than chance makes of any token, and less than a token's own successor has."""


def build_scripted(
    folder: Path, family: Family, answers: Mapping[str, str], *, model_type: str = "llama", visible: Sequence[str] = ()
) -> Path:
    """Write the model into a new folder, whose path comes back; raises InvalidRequest for answers it cannot say.

    Its tokenizer has the family's special tokens, those for answers and the `visible` ones; where the answers have one
    of them for the first time, it is that token, else it is spelled out in pieces.
    """
    spoken = msgspec.structs.replace(
        family, special=(*family.special, *ANSWER_TOKENS), visible=(*family.visible, *visible)
    )
    table = _Table(spoken)
    for last, answer in answers.items():
        table.add(last, answer)
    folder.mkdir(parents=True)
    shift = len(table.pieces)
    ids = {token: token_id + shift for token, token_id in token_ids(spoken).items()}
    _write_json(folder / "tokenizer.json", _tokenizer(spoken, table.pieces))
    _write_json(folder / "config.json", _config(model_type, spoken, ids, vocab_size=VOCAB_SIZE + shift))
    _write_json(
        folder / "tokenizer_config.json",
        {"bos_token": family.bos, "eos_token": family.eos[0], "chat_template": family.chat_template},
    )
    weights = _weights(
        table.pairs(ids), ids[family.eos[0]], VOCAB_SIZE + shift, has_head_norms=model_type in _WITH_HEAD_NORMS
    )
    write_safetensors(folder / "model.safetensors", weights)
    return folder


class _Table:
    """Which token follows which, by how the vocabulary spells them."""

    def __init__(self, family: Family) -> None:
        self._end = family.eos[0]
        self._special = frozenset((*family.special, *family.visible))
        self._known = {token: token_id for token_id, token in enumerate(vocabulary())}
        self._chains: list[list[str]] = []
        self._used: set[str] = set()
        self.pieces: list[str] = []
        """Tokens that the vocabulary does not have yet."""

    def add(self, last: str, answer: str) -> None:
        """What is said behind a token."""
        start = last if last in self._special else spell(last)[0]
        self._take(start)
        self._chains.append([start, *self._tokens(answer), self._end])

    def pairs(self, special_ids: Mapping[str, int]) -> list[tuple[int, int]]:
        """Each token and its successor."""
        ids = self._known | {piece: FIRST_SPECIAL_ID + place for place, piece in enumerate(self.pieces)}
        ids.update(special_ids)
        return [(ids[one], ids[other]) for chain in self._chains for one, other in pairwise(chain)]

    def _tokens(self, answer: str) -> Iterator[str]:
        """The answer cut into tokens; the longest special one wins."""
        plain = ""
        while answer:
            found = max(
                (token for token in self._special - self._used if answer.startswith(token)), key=len, default=""
            )
            if found:
                yield from self._pieces(spell(plain)[0])
                yield self._take(found)
                plain = ""
            else:
                plain += answer[0]
            answer = answer[len(found) or 1 :]
        yield from self._pieces(spell(plain)[0])

    def _pieces(self, spelled: str) -> Iterator[str]:
        pieces = self._cut(spelled, frozenset(self._used))
        if pieces is None:
            raise InvalidRequest(f"{spelled!r} cannot be said once more.", hint="Write the answers differently.")
        yield from map(self._take, pieces)

    def _cut(self, spelled: str, used: frozenset[str]) -> list[str] | None:
        """Pieces that stand nowhere else: of the usual length if they can be, else longer, else shorter."""
        if not spelled:
            return []
        usual = min(_PIECE_BYTES, len(spelled))
        for length in (*range(usual, len(spelled) + 1), *range(usual - 1, 0, -1)):
            piece = spelled[:length]
            if piece in used:
                continue
            rest = self._cut(spelled[length:], used | {piece})
            if rest is not None:
                return [piece, *rest]
        return None

    def _take(self, token: str) -> str:
        if token in self._used:
            raise InvalidRequest(f"There is an answer behind {token!r} already.", hint="Choose another token.")
        self._used.add(token)
        if token not in self._known and token not in self._special:
            self.pieces.append(token)
        return token


def _tokenizer(family: Family, pieces: Sequence[str]) -> dict[str, Any]:
    """The family's tokenizer with pieces before its special tokens; no merges lead to them, so no prompt has them."""
    data: dict[str, Any] = json.loads(json.dumps(tokenizer_data(family)))
    data["model"]["vocab"] |= {piece: FIRST_SPECIAL_ID + place for place, piece in enumerate(pieces)}
    for token in data["added_tokens"]:
        token["id"] += len(pieces)
    for token in data["post_processor"].get("special_tokens", {}).values():
        token["ids"] = [token_id + len(pieces) for token_id in token["ids"]]
    return data


def _config(model_type: str, family: Family, ids: Mapping[str, int], *, vocab_size: int) -> dict[str, object]:
    return tiny_config(
        model_type,
        vocab_size=vocab_size,
        hidden_size=_HIDDEN,
        num_hidden_layers=1,
        max_position_embeddings=CONTEXT,
        torch_dtype="float32",
        bos_token_id=None if family.bos is None else ids[family.bos],
        eos_token_id=ids[family.eos[0]],
    )


def _weights(
    pairs: Sequence[tuple[int, int]], end_id: int, vocab_size: int, *, has_head_norms: bool
) -> dict[str, NDArray[np.float32]]:
    """Each token is a random code, and its successor answers to that code; to all others answers the end."""
    config = tiny_config("llama")
    heads, kv_heads, head_dim, inner = (
        int(str(config[name]))
        for name in ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    )
    codes = np.random.default_rng(0).choice(np.array([-1, 1], dtype=np.float32), (vocab_size, _HIDDEN))
    codes[:, 0] = 1
    head = np.zeros((vocab_size, _HIDDEN), dtype=np.float32)
    head[end_id, 0] = _END_GAIN
    for one, other in pairs:
        head[other] += codes[one]
    shapes = {
        "self_attn.q_proj": (heads * head_dim, _HIDDEN),
        "self_attn.k_proj": (kv_heads * head_dim, _HIDDEN),
        "self_attn.v_proj": (kv_heads * head_dim, _HIDDEN),
        "self_attn.o_proj": (_HIDDEN, heads * head_dim),
        "mlp.gate_proj": (inner, _HIDDEN),
        "mlp.up_proj": (inner, _HIDDEN),
        "mlp.down_proj": (_HIDDEN, inner),
    }
    layer = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
    norms = {name: np.ones(_HIDDEN, dtype=np.float32) for name in ("input_layernorm", "post_attention_layernorm")}
    if has_head_norms:
        norms |= {f"self_attn.{name}_norm": np.ones(head_dim, dtype=np.float32) for name in "qk"}
    return {
        "model.embed_tokens.weight": codes,
        "model.norm.weight": np.ones(_HIDDEN, dtype=np.float32),
        "lm_head.weight": head,
        **{f"model.layers.0.{name}.weight": array for name, array in (layer | norms).items()},
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
