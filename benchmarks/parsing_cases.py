"""The cases of `benchmarks.parsing`: answers of several families, and the decode step they are measured against."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from benchmarks.report import Gate, Report, Value
from benchmarks.sampling_cases import _decode_step as open_decode_step
from mlxm.engine.formats.families import FAMILIES, Family
from mlxm.engine.formats.parser import open_parser
from mlxm.engine.output import Answer, Detokenizer
from mlxm.types import Tool

NUM_ROWS = 16
TARGET = 0.03
_VOCABULARY = 1200
_STOPS = ("\nUser:", "<|endoftext|>")
_WORDS = "The quick answer, as far as anybody knows, is that it depends: 4 < 5, `a[0]` and {so on}.\n\n" * 6
_ARGUMENTS = '{"path": "src/main.py", "text": "def main():\\n    print([1, 2, {\\"a\\": 3}])\\n", "line": 12}'
_CODE = "def main():\n    if a < b and c[0]:\n        print({'a': 1})\n" * 4
_TOOL = Tool(
    name="edit",
    parameters='{"type": "object", "properties": {"path": {"type": "string"}, "text": {"type": "string"}, '
    '"line": {"type": "integer"}}}',
)
_THOUGHTS = f"<think>\n{_WORDS}</think>\n\n{_WORDS}"
_XML_CALL = (
    f"<tool_call>\n<function=edit>\n<parameter=path>\na.py\n</parameter>\n<parameter=text>\n{_CODE}</parameter>\n"
    "<parameter=line>\n12\n</parameter>\n</function>\n</tool_call>"
)
_CHANNEL_CALL = (
    "<|start|>assistant<|channel|>commentary to=functions.edit <|constrain|>json<|message|>" + _ARGUMENTS + "<|call|>"
)
_ANSWERS = {
    "plain text": ("gemma", _WORDS * 2),
    "thoughts and JSON calls": (
        "qwen3",
        _THOUGHTS + f'<tool_call>\n{{"name": "edit", "arguments": {_ARGUMENTS}}}\n</tool_call>\n' * 4,
    ),
    "thoughts and calls in tags": ("qwen3-coder", _THOUGHTS + _XML_CALL * 3),
    "bare JSON calls": ("llama-3", f'{{"name": "edit", "parameters": {_ARGUMENTS}}}; ' * 6),
    "channels": (
        "gpt-oss",
        f"<|channel|>analysis<|message|>{_WORDS}<|end|>" + _CHANNEL_CALL,
    ),
}


@dataclass(frozen=True)
class Case:
    """An answer as tokens, and the family in whose markup it is."""

    family: Family
    detokenizer: Detokenizer
    token_ids: Sequence[int]

    def run(self) -> None:
        """Read the answer of every row, step by step."""
        rows = [
            (
                Answer(self.detokenizer, stop_ids=(), stops=_STOPS, max_tokens=len(self.token_ids)),
                open_parser(self.family, tools=(_TOOL,)),
            )
            for _ in range(NUM_ROWS)
        ]
        for token_id in self.token_ids:
            for answer, parser in rows:
                parser.feed(answer.add(token_id).text, (token_id,))
        for _, parser in rows:
            parser.finish()


def measure(is_quick: bool) -> Report:  # noqa: FBT001  # the one argument of every benchmark
    """The step, then every case, each as a share of the step."""
    num_rounds = 3 if is_quick else 15
    step_s = _cpu_s(open_decode_step(), num_rounds)
    rows: list[dict[str, Value]] = [{"case": "decode step", "ms": round(step_s * 1e3, 2)}]
    worst = 0.0
    for name, case in _cases().items():
        token_s = _cpu_s(case.run, num_rounds) / (len(case.token_ids) * NUM_ROWS)
        worst = max(worst, token_s * NUM_ROWS / step_s)
        rows.append(
            {
                "case": name,
                "tokens": len(case.token_ids),
                "us_per_token": round(token_s * 1e6, 2),
                "share_of_step": round(token_s * NUM_ROWS / step_s, 5),
            }
        )
    return Report(rows=tuple(rows), gates=(Gate.at_most("parsing_share_of_step", worst, TARGET),))


def _cases() -> dict[str, Case]:
    families = {entry.family.name: entry.family for entry in FAMILIES}
    tokenizer = _tokenizer([text for _, text in _ANSWERS.values()])
    detokenizer = Detokenizer(tokenizer)
    return {
        name: Case(families[family], detokenizer, tokenizer.encode(text).ids)
        for name, (family, text) in _ANSWERS.items()
    }


def _tokenizer(texts: Sequence[str]) -> Tokenizer:
    """A byte-level vocabulary whose tokens have about as many characters as those of models."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=_VOCABULARY, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _cpu_s(work: Callable[[], None], num_rounds: int) -> float:
    """The median of the rounds, after one that warms up."""
    work()
    times = []
    for _ in range(num_rounds):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return median(times)
