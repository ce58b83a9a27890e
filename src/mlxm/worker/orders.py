"""From a request to the engine's order: the loaded model adds what ends its answers and what its prefixes are.

Two prefixes of the same tokens hold the same numbers only under the same model, tokenizer, template and KV store.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import msgspec

from mlxm.engine.plan import RunnerFacts
from mlxm.engine.request import Order
from mlxm.frames import Generate
from mlxm.types import Sampling

_TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json")
_WEIGHTS = "*.safetensors"
_SCOPE_BYTES = 16


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """Makes orders for one loaded model."""

    stop_ids: frozenset[int]
    """The model's own."""
    scope: bytes
    sampling: Sampling = Sampling()
    """What it is for the model when a request does not say."""

    def __call__(self, request: Generate) -> Order:
        """The order for a request."""
        return Order(
            request_id=request.request_id,
            prompt_ids=request.prompt_ids,
            sampling=self._fill(request.sampling),
            max_tokens=request.max_tokens,
            stop=request.stop,
            stop_ids=self.stop_ids,
            extra_stop_ids=frozenset(request.stop_ids),
            num_choices=request.num_choices,
            priority=request.priority,
            scope=self.scope + request.scope,
            num_logprobs=request.num_logprobs,
            prompt_logprobs=request.prompt_logprobs,
            grammar=request.grammar,
            kept_ids=frozenset(request.kept_ids),
            thoughts=request.thoughts,
        )

    def _fill(self, asked: Sampling) -> Sampling:
        """What is asked, and of what is not, the model's own."""
        own = msgspec.structs.asdict(self.sampling)
        missing = [name for name, value in msgspec.structs.asdict(asked).items() if value is None]
        return msgspec.structs.replace(asked, **{name: own[name] for name in missing})


def scope_of(folder: Path, facts: RunnerFacts) -> bytes:
    """A digest, always as long, of all that the numbers of a prefix depend on besides its tokens."""
    digest = blake2b(digest_size=_SCOPE_BYTES)
    for part in _identity(folder, facts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _identity(folder: Path, facts: RunnerFacts) -> Iterator[bytes]:
    """Weights are told apart by place, size and time: reading them would take as long as loading them."""
    for name in _TEXT_FILES:
        path = folder / name
        yield path.read_bytes() if path.is_file() else b""
    for path in sorted(folder.glob(_WEIGHTS)):
        status = path.stat()
        yield f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode(errors="surrogateescape")
    yield f"{facts.kind} {facts.block_bytes}".encode()
