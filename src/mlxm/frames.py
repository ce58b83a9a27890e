"""What the server, its workers and its prep processes say to each other over a unix socket.

A frame is a four-byte big-endian length and one msgpack-encoded struct. The child speaks first (Hello); a
protocol hash that differs means two versions of mlxm, and the only cure is a restart.
"""

from __future__ import annotations

import hashlib
import socket
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from mlxm import __version__
from mlxm.errors import BY_CODE, InternalError, InvalidRequest, MlxmError, ProtocolMismatch
from mlxm.types import FinishReason, Grammar, Message, Sampling, Thinking, TokenLogprobs, Tool, Usage

if TYPE_CHECKING:
    import asyncio  # children read blocking sockets and start faster without it

MAX_ROWS = 16
"""How many answers a model computes at once, unless somebody wants otherwise."""
MAX_FRAME_BYTES = 64 * 1024 * 1024
_LENGTH = struct.Struct(">I")


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """An MlxmError on its way between processes."""

    code: str
    message: str
    hint: str | None = None
    param: str | None = None
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: MlxmError) -> Fault:
        """Pack an error."""
        return cls(
            code=error.code,
            message=error.message,
            hint=error.hint,
            param=error.param,
            retry_after_s=error.retry_after_s,
        )

    def error(self) -> MlxmError:
        """The same error on this side."""
        kind = BY_CODE.get(self.code, InternalError)
        return kind(self.message, hint=self.hint, param=self.param, retry_after_s=self.retry_after_s)


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """The child's first frame."""

    protocol: str
    version: str
    pid: int
    capabilities: tuple[str, ...] = ()


# ── server → worker ──────────────────────────────────────────────────────────────────────────────


class Load(msgspec.Struct, frozen=True, kw_only=True, tag="load"):
    """Load the model in folder `path`; answered by LoadProgress*, then Loaded or LoadFailed.

    `kv_bytes` is what keys and values may take, `cache_bytes` what may be kept of freed memory; None leaves it to the
    worker. `verdicts` is the folder in which it
    keeps what it found out about stores for them.
    """

    path: str
    kv_bytes: int | None = None
    cache_bytes: int | None = None
    max_rows: int = MAX_ROWS
    verdicts: str | None = None


class ThoughtLimit(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens an answer may think, and how it is seen when it does: between two texts.

    `is_open` is whether the prompt has opened the thoughts already. Else they begin before all other text, or, with
    `reopens`, anywhere and again.
    """

    num_tokens: int
    opener: str
    closer: str
    close_ids: tuple[int, ...]
    """The tokens that close the thoughts."""
    is_open: bool = False
    reopens: bool = False


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """Start a request; answered by exactly one RequestEnded whatever happens.

    `max_tokens` None means as many as context and memory allow. `scope` is what a prefix's numbers depend on besides
    its tokens, and who may share them. `priority`: 0 is high, 1 normal, 2 low.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    """Ids that end the answer besides the model's own."""
    num_choices: int = 1
    priority: int = 1
    scope: bytes = b""
    num_logprobs: int | None = None
    prompt_logprobs: bool = False
    """Whether the prompt's tokens are wanted with their logprobs too, as Deltas without text before all others."""
    grammar: Grammar | None = None
    kept_ids: tuple[int, ...] = ()
    """Special tokens that are spelled out in the answer's text, for those who read markup."""
    thoughts: ThoughtLimit | None = None


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    """Stop a request; idempotent, and ignored when the request has ended."""

    request_id: str
    reason: str


class Shrink(msgspec.Struct, frozen=True, tag="shrink"):
    """Give back the memory that is only kept for later."""


class PrefillTurn(msgspec.Struct, frozen=True, tag="prefill_turn"):
    """Whether it is this worker's turn to compute long prompts in large chunks; a turn taken away is given back."""

    has_it: bool


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Leave now; the child exits with 0."""


# ── worker → server ──────────────────────────────────────────────────────────────────────────────


class LoadProgress(msgspec.Struct, frozen=True, kw_only=True, tag="load_progress"):
    """Bytes of weights read so far."""

    done_bytes: int
    total_bytes: int


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded"):
    """The model answered a first forward and is ready."""

    architecture: str
    vocab_size: int
    context_length: int | None
    active_bytes: int
    load_s: float
    kind: str = "plain"
    """The store of keys and values."""
    why: str = ""
    num_blocks: int = 0
    block_bytes: int = 0
    kv_bytes: int = 0
    """What keys and values will take at most; 0: nobody knows."""


class LoadFailed(msgspec.Struct, frozen=True, kw_only=True, tag="load_failed"):
    """The model cannot be used."""

    fault: Fault


class PrefillAsked(msgspec.Struct, frozen=True, tag="prefill_asked"):
    """There is a long prompt, and it is another worker's turn."""


class PrefillGivenBack(msgspec.Struct, frozen=True, tag="prefill_given_back"):
    """The turn is free for others."""


class RequestStarted(msgspec.Struct, frozen=True, kw_only=True, tag="request_started"):
    """The request left the queue."""

    request_id: str


class Delta(msgspec.Struct, frozen=True, kw_only=True, tag="delta"):
    """New text of one choice; `seq` counts from 0 per request without a gap."""

    request_id: str
    choice: int
    seq: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop: str | None = None
    """The stop string that ended the choice."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    ends: tuple[int, ...] = ()
    """Where in the text that of each token ends, when there are several."""

    def split(self) -> Iterator[Delta]:
        """The same, token by token."""
        if not self.ends:
            yield self
            return
        start = 0
        for place, end in enumerate(self.ends):
            is_last = place == len(self.ends) - 1
            yield Delta(
                request_id=self.request_id,
                choice=self.choice,
                seq=self.seq + place,
                text=self.text[start:end],
                token_ids=self.token_ids[place : place + 1],
                finish_reason=self.finish_reason if is_last else None,
                stop=self.stop if is_last else None,
                logprobs=self.logprobs[place : place + 1],
            )
            start = end


class RequestEnded(msgspec.Struct, frozen=True, kw_only=True, tag="request_ended"):
    """The one terminal event: it alone releases what the request held."""

    request_id: str
    usage: Usage
    fault: Fault | None = None
    cancelled: str | None = None


class Step(msgspec.Struct, frozen=True, tag="step"):
    """All that one engine step produced, for all its rows."""

    events: tuple[RequestStarted | Delta | RequestEnded, ...]


class Stats(msgspec.Struct, frozen=True, kw_only=True, tag="stats"):
    """A look at a worker's engine, sent now and then while it works and once when it comes to rest."""

    blocks_total: int = 0
    blocks_used: int = 0
    blocks_cached: int = 0
    blocks_free: int = 0
    waste: float = 0.0
    """The part of the token places in owned blocks that holds no token."""
    running: int = 0
    waiting: int = 0
    preemptions: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    tokens_per_s: float = 0.0
    step_s: float = 0.0
    """The mean over the steps of the window, like its two parts."""
    step_chunks_s: float = 0.0
    step_rows_s: float = 0.0
    batch_width: float = 0.0
    """Rows per step that had any."""
    active_bytes: int | None = None
    peak_bytes: int | None = None
    cache_bytes: int | None = None


# ── server ↔ prep ────────────────────────────────────────────────────────────────────────────────


class Render(msgspec.Struct, frozen=True, kw_only=True, tag="render"):
    """Turn a conversation into token ids with the template and tokenizer of the model in folder `path`."""

    job: int
    path: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    thinking: Thinking = Thinking()
    template_options: str = "{}"
    continues_final: bool = False


class Encode(msgspec.Struct, frozen=True, kw_only=True, tag="encode"):
    """Turn a text into token ids, with the tokens that the model's tokenizer puts before it unless `is_bare`."""

    job: int
    path: str
    text: str
    suffix: str | None = None
    """What comes after the gap, for models that fill in the middle."""
    is_bare: bool = False


class Decode(msgspec.Struct, frozen=True, kw_only=True, tag="decode"):
    """Turn token ids into text."""

    job: int
    path: str
    ids: tuple[int, ...]


class VetGrammar(msgspec.Struct, frozen=True, kw_only=True, tag="vet_grammar"):
    """Say whether a grammar is one, and within the limits."""

    job: int
    grammar: Grammar


class Describe(msgspec.Struct, frozen=True, kw_only=True, tag="describe"):
    """Say how the model in folder `path` writes."""

    job: int
    path: str


class Description(msgspec.Struct, frozen=True, kw_only=True, tag="description"):
    """How a model writes: its family, msgpack-encoded, and the ids of the tokens that are part of its markup."""

    job: int
    family: bytes
    special_ids: dict[str, int] = {}
    """Those that are special, at least to grammars, and have to stay in the text of answers."""
    stop_ids: tuple[int, ...] = ()
    """What ends an answer to a chat, besides what the model's files name."""


class GrammarVetted(msgspec.Struct, frozen=True, kw_only=True, tag="grammar_vetted"):
    """The grammar can be used."""

    job: int


class JobStarted(msgspec.Struct, frozen=True, kw_only=True, tag="job_started"):
    """The model's tokenizer is in memory; from here on the job's own time and memory count."""

    job: int


class Tokens(msgspec.Struct, frozen=True, kw_only=True, tag="tokens"):
    """The prompt's token ids, the last characters of its text, and what was wished for and did not go into it."""

    job: int
    ids: tuple[int, ...]
    ending: str = ""
    unused: tuple[str, ...] = ()


class Text(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """The text of token ids."""

    job: int
    text: str


class JobFailed(msgspec.Struct, frozen=True, kw_only=True, tag="job_failed"):
    """A prep job that could not be done."""

    job: int
    fault: Fault


ToWorker = Load | Generate | Cancel | Shrink | PrefillTurn | Shutdown
FromWorker = Hello | LoadProgress | Loaded | LoadFailed | Step | Stats | PrefillAsked | PrefillGivenBack
ToPrep = Render | Encode | Decode | Describe | VetGrammar | Shutdown
FromPrep = Hello | JobStarted | Tokens | Text | Description | GrammarVetted | JobFailed

FrameT = TypeVar("FrameT")


def _protocol_hash() -> str:
    """A digest of every frame's shape, so that no version number has to be remembered."""
    shape, components = msgspec.json.schema_components((ToWorker, FromWorker, ToPrep, FromPrep))
    return hashlib.sha256(msgspec.json.encode((shape, components), order="deterministic")).hexdigest()[:16]


PROTOCOL = _protocol_hash()
_encoder = msgspec.msgpack.Encoder()


def encode(frame: msgspec.Struct) -> bytes:
    """The frame as it goes on the wire; InvalidRequest for texts and numbers that no frame can carry."""
    try:
        body = _encoder.encode(frame)
    except UnicodeEncodeError as error:
        raise InvalidRequest("A text, or the path of a folder, holds what is no Unicode text.") from error
    except OverflowError as error:
        raise InvalidRequest("A number is beyond 64 bits.") from error
    return _LENGTH.pack(_checked(len(body))) + body


def _checked(length: int) -> int:
    if length > MAX_FRAME_BYTES:
        raise ProtocolMismatch(f"A frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}.")
    return length


class Decoder:
    """Reads frames of one union type, from asyncio streams or blocking sockets."""

    def __init__(self, kind: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(kind).decode

    def _frame(self, body: bytes) -> Any:
        try:
            return self._decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolMismatch("A frame could not be read.", hint="Restart the server.") from error

    async def read(self, stream: asyncio.StreamReader) -> Any | None:
        """The next frame, or None at the end of the stream."""
        try:
            (length,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
            return self._frame(await stream.readexactly(_checked(length)))
        except (EOFError, ConnectionError):
            return None

    def read_blocking(self, sock: socket.socket) -> Any | None:
        """The next frame, or None at the end of the stream."""
        head = _receive(sock, _LENGTH.size)
        if head is None:
            return None
        body = _receive(sock, _checked(_LENGTH.unpack(head)[0]))
        return None if body is None else self._frame(body)


def _receive(sock: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        try:
            chunk = sock.recv(min(size - len(parts), 1 << 20))
        except ConnectionError:
            return None
        if not chunk:
            return None
        parts += chunk
    return bytes(parts)


def check_hello(hello: Hello) -> None:
    """Refuse a child of another version."""
    if hello.protocol != PROTOCOL:
        raise ProtocolMismatch(
            f"This is mlxm {__version__}, its child process is mlxm {hello.version}.",
            hint="mlxm was changed while it ran: restart the server.",
        )
