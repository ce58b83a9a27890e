"""The cases of `benchmarks.sampling`: a decode step without sampling, and the samplers on logits like a model's."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import mlx.core as mx
import numpy as np
from mlx_lm.models import qwen3
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from benchmarks.report import Gate, Report, Value, median_ratio
from mlxm.device.kv_store import read_shapes
from mlxm.device.loader import use_plain_kernels
from mlxm.device.paged import PagedStore
from mlxm.device.sampler import Sampler
from mlxm.engine.guide import Grammars, Guide
from mlxm.engine.plan import BLOCK_TOKENS, Row
from mlxm.types import Grammar, Sampling

_NUM_ROWS = 16
_VOCABULARY = 32_000
_CONTEXT = 512
_MODEL = {
    "model_type": "qwen3",
    "hidden_size": 640,
    "num_hidden_layers": 24,
    "intermediate_size": 2048,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "vocab_size": _VOCABULARY,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
_STEEPNESS = 3.0
"""Standard deviation of the logits: the 256 likeliest tokens hold two thirds of the probability."""
_NUM_LOGITS = 4
_GREEDY = Sampling(temperature=0.0)
_WARM = Sampling(temperature=0.8)
_FULL = Sampling(
    temperature=0.8,
    top_p=0.9,
    top_k=50,
    min_p=0.02,
    repetition_penalty=1.1,
    presence_penalty=0.2,
    frequency_penalty=0.1,
)
_STEP = "step without sampling"
_TIMES_PER_ROUND = 5
_TARGETS = {"greedy": 0.02, "full": 0.15, "grammar": 0.25}
_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"enum": ["Paris", "Rome", "Oslo"]}},
            "required": ["street", "city"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


_CACHE_BYTES = 256 * 1024 * 1024
"""What mlx may keep of freed memory in a worker on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds that some work took in each round."""

    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)


def measure(is_quick: bool) -> Report:  # noqa: FBT001  # the one argument of every benchmark
    """The step and every way of sampling in turns, each as a share of the step."""
    use_plain_kernels()
    mx.set_cache_limit(_CACHE_BYTES)
    works = {_STEP: _decode_step(), **_cases()}
    times = {name: Times() for name in works}
    for work in works.values():
        work()
    for _ in range(3 if is_quick else 11):
        for name, work in works.items():
            _measure(work, 1 if name == _STEP else _TIMES_PER_ROUND, times[name])
    rows = [_row(name, found, times[_STEP]) for name, found in times.items()]
    shares = {name: median_ratio(times[name].cpu_s, times[_STEP].cpu_s) for name in _TARGETS}
    gates = [Gate.at_most(f"{name}_share_of_step", shares[name], target) for name, target in _TARGETS.items()]
    return Report(rows=tuple(rows), gates=tuple(gates))


def _cases() -> dict[str, Callable[[], None]]:
    """By names; those in the targets are gates."""
    return {
        "greedy": _Sampled(_GREEDY),
        "temperature": _Sampled(_WARM),
        "top_k 50": _Sampled(Sampling(temperature=0.8, top_k=50)),
        "top_p 0.5": _Sampled(Sampling(temperature=0.8, top_p=0.5)),
        "top_p 0.99, sorted": _Sampled(Sampling(temperature=0.8, top_p=0.99)),
        "min_p": _Sampled(Sampling(temperature=0.8, min_p=0.05)),
        "logprobs 5": _Sampled(_GREEDY, num_logprobs=5),
        "full": _Sampled(_FULL, num_logprobs=5),
        "full beside greedy": _Sampled(_FULL, _GREEDY, num_logprobs=5),
        "grammar": _Constrained(_WARM),
        "grammar, greedy": _Constrained(_GREEDY),
        "grammar, full": _Constrained(_FULL, num_logprobs=5),
    }


class _Sampled:
    """A token for each row of other logits each time, brought to the host; the answers grow by it."""

    def __init__(self, *samplings: Sampling, num_logprobs: int | None = None) -> None:
        numbers = np.random.default_rng(0)
        shape = (_NUM_ROWS, _VOCABULARY)
        self._logits = [
            mx.array((numbers.normal(size=shape) * _STEEPNESS).astype(np.float32)) for _ in range(_NUM_LOGITS)
        ]
        mx.eval(self._logits)
        self._samplings = [samplings[place % len(samplings)] for place in range(_NUM_ROWS)]
        self._num_logprobs = num_logprobs
        self._sampler = Sampler()
        self._answers = [numbers.integers(0, _VOCABULARY, _CONTEXT).tolist() for _ in range(_NUM_ROWS)]
        self._num_done = 0

    def __call__(self) -> None:
        """A step."""
        self._choose([None] * _NUM_ROWS)

    def _choose(self, masks: Sequence[bytes | None]) -> list[int]:
        rows = [self._row(place, mask) for place, mask in enumerate(masks)]
        self._num_done += 1
        sampled = self._sampler(self._logits[self._num_done % _NUM_LOGITS], rows)
        mx.eval(sampled.arrays())
        tokens: list[int] = sampled.tokens.tolist()  # type: ignore[assignment]  # of one axis, it is flat
        if not all(sampled.are_valid.tolist()):  # type: ignore[arg-type]  # as above
            raise RuntimeError("a row had no token to choose")
        sampled.logprobs_of(rows)
        for answer, token in zip(self._answers, tokens, strict=True):
            answer.append(token)
        return tokens

    def _row(self, place: int, mask: bytes | None) -> Row:
        answer = self._answers[place]
        return Row(
            sequence=place,
            position=len(answer) - 1,
            token=answer[-1],
            table=(),
            sampling=self._samplings[place],
            seed=place,
            tokens=answer,
            num_prompt=_CONTEXT // 2,
            mask=mask,
            num_logprobs=self._num_logprobs,
        )


class _Constrained(_Sampled):
    """As above, every row kept to a JSON Schema; an answer that is complete is followed by another."""

    def __init__(self, *samplings: Sampling, num_logprobs: int | None = None) -> None:
        super().__init__(*samplings, num_logprobs=num_logprobs)
        self._grammar = Grammar(kind="json_schema", source=json.dumps(_SCHEMA))
        self._grammars = Grammars(_tokenizer_json, vocab_size=_VOCABULARY, stop_ids=frozenset({_VOCABULARY - 1}))
        self._guides = [self._grammars.guide(self._grammar) for _ in range(_NUM_ROWS)]

    def __call__(self) -> None:
        """A step, and the masks of the next."""
        tokens = self._choose([guide.mask for guide in self._guides])
        for place, token in enumerate(tokens):
            if self._guides[place].accept(token):
                self._guides[place] = self._follower()
        for guide in self._guides:
            guide.refresh()

    def _follower(self) -> Guide:
        return self._grammars.guide(self._grammar)


def _decode_step() -> Callable[[], None]:
    """Computes the logits of sixteen rows on a store of blocks."""
    model = qwen3.Model(qwen3.ModelArgs.from_dict(_MODEL))
    mx.eval(model.parameters())
    num_blocks = _CONTEXT // BLOCK_TOKENS
    store = PagedStore(model, read_shapes(model), 1 + _NUM_ROWS * num_blocks)
    rows = tuple(
        Row(
            sequence=place,
            position=_CONTEXT - 1,
            token=place,
            table=range(1 + place * num_blocks, 1 + (place + 1) * num_blocks),
        )
        for place in range(_NUM_ROWS)
    )

    def step() -> None:
        computed = store.compute(rows, mx.arange(_NUM_ROWS, dtype=mx.uint32), ())
        mx.eval(computed.logits, store.pools.arrays())

    return step


def _tokenizer_json() -> str:
    """A vocabulary of bytes, numbers, and words with and without a space before them."""
    numbers = random.Random(0)  # noqa: S311  # the same words every time
    tokens = dict.fromkeys(sorted(ByteLevel.alphabet()))
    tokens |= dict.fromkeys(
        [f"{number}" for number in range(1000)] + ['":', '",', '","', '":"', "{}", "[]", '"]', '"}']
    )
    while len(tokens) < _VOCABULARY - 1:
        word = "".join(numbers.choices(_LETTERS, weights=range(26, 0, -1), k=numbers.randint(2, 9)))
        tokens[numbers.choice(("", "Ġ")) + word] = None
    vocabulary = {token: token_id for token_id, token in enumerate([*tokens, "<end>"])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer.to_str()


def _measure(work: Callable[[], None], num_times: int, times: Times) -> None:
    """Add a round."""
    cpu_began_s, began_s = time.process_time(), time.perf_counter()
    for _ in range(num_times):
        work()
    times.cpu_s.append((time.process_time() - cpu_began_s) / num_times)
    times.wall_s.append((time.perf_counter() - began_s) / num_times)


def _row(name: str, times: Times, step: Times) -> dict[str, Value]:
    return {
        "case": name,
        "cpu_ms": round(median(times.cpu_s) * 1e3, 2),
        "wall_ms": round(median(times.wall_s) * 1e3, 2),
        "share_of_step": round(median_ratio(times.cpu_s, step.cpu_s), 4),
    }
