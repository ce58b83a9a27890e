"""The worker's main loop: requests in the order they came, one at a time, and a look at the link after every step."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Protocol

from mlxm.engine.output import Answer, Detokenizer
from mlxm.errors import InternalError, InvalidRequest, MlxmError, ModelBroken, ProtocolMismatch
from mlxm.frames import Cancel, Delta, Fault, Generate, RequestEnded, RequestStarted, Shutdown, Step, ToWorker
from mlxm.types import Usage
from mlxm.worker.link import Link

_LEAVING = "the worker was told to leave"


class Model(Protocol):
    """What the service asks of a loaded model."""

    @property
    def detokenizer(self) -> Detokenizer:
        """From ids to text."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        ...

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        ...


Tokens = Generator[int | None]
"""A request's tokens one by one, and None after work that made no token."""
Steps = Callable[[Generate], Tokens]


class Service:
    """Runs requests against one model until it is told to leave."""

    def __init__(self, link: Link, model: Model, steps: Steps) -> None:
        self._link = link
        self._model = model
        self._steps = steps
        self._waiting: dict[str, Generate] = {}
        self._running: str | None = None
        self._cancelled: str | None = None
        self._is_leaving = False

    def run(self) -> None:
        """Serve until Shutdown."""
        while not self._is_leaving:
            if not self._waiting:
                self._handle(self._link.receive())
            self._handle_arrived()
            if self._waiting and not self._is_leaving:
                self._serve(self._waiting.pop(next(iter(self._waiting))))
        for request_id in list(self._waiting):
            self._cancel(Cancel(request_id=request_id, reason=_LEAVING))

    def _handle_arrived(self) -> None:
        while (frame := self._link.poll()) is not None:
            self._handle(frame)

    def _handle(self, frame: ToWorker) -> None:
        match frame:
            case Generate():
                self._waiting[frame.request_id] = frame
            case Cancel():
                self._cancel(frame)
            case Shutdown():
                self._is_leaving = True
            case _:
                raise ProtocolMismatch(f"A worker that has its model does not take {type(frame).__name__}.")

    def _cancel(self, frame: Cancel) -> None:
        """Requests that have ended are not known any more: cancelling them again does nothing."""
        if frame.request_id == self._running:
            self._cancelled = frame.reason
        elif self._waiting.pop(frame.request_id, None) is not None:
            ended = RequestEnded(request_id=frame.request_id, usage=Usage(), cancelled=frame.reason)
            self._link.send(Step((ended,)))

    def _serve(self, request: Generate) -> None:
        """Run one request to its one terminal event."""
        self._running, self._cancelled = request.request_id, None
        self._link.send(Step((RequestStarted(request_id=request.request_id),)))
        row = _Row(request, self._model)
        fault = None
        last: tuple[Delta, ...] = ()
        try:
            row.check()
            last = self._run(row)
        except MlxmError as error:
            fault = Fault.of(error)
        except Exception as error:  # noqa: BLE001  (the engine step boundary: it fails this request alone)
            traceback.print_exc(file=sys.stderr)
            fault = Fault.of(_internal(error))
        self._running = None
        ended = RequestEnded(
            request_id=request.request_id, usage=row.usage, fault=fault, cancelled=None if fault else self._cancelled
        )
        self._link.send(Step((*last, ended)))

    def _run(self, row: _Row) -> tuple[Delta, ...]:
        """Send every delta but the last one, which is returned to travel with the terminal event."""
        with closing(self._steps(row.request)) as steps:
            for token_id in steps:
                if token_id is not None:
                    delta = row.add(token_id)
                    if delta.finish_reason is not None:
                        self._cancelled = None
                        return (delta,)
                    self._link.send(Step((delta,)))
                self._handle_arrived()
                if self._is_leaving:
                    self._cancelled = _LEAVING
                if self._cancelled is not None:
                    return ()
        raise InternalError("The engine stopped before the answer was complete.")


class _Row:
    """One request in the engine."""

    def __init__(self, request: Generate, model: Model) -> None:
        self.request = request
        self._vocab_size = model.vocab_size
        self._answer = Answer(
            model.detokenizer, stop_ids=model.stop_ids, stops=request.stop, max_tokens=request.max_tokens
        )

    def check(self) -> None:
        """Refuse what would make the device read outside its arrays."""
        request = self.request
        if not request.prompt_ids:
            raise InvalidRequest("The prompt is empty.", param="messages")
        if request.max_tokens < 1:
            raise InvalidRequest(f"max_tokens is {request.max_tokens}; it must be at least 1.", param="max_tokens")
        if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= self._vocab_size:
            raise ModelBroken(
                f"The tokenizer makes ids up to {max(request.prompt_ids)}, the model knows {self._vocab_size}.",
                hint="tokenizer.json does not belong to these weights: fetch the model again.",
            )

    def add(self, token_id: int) -> Delta:
        """The event of one more token."""
        seq = self._answer.num_tokens
        piece = self._answer.add(token_id)
        return Delta(
            request_id=self.request.request_id,
            choice=0,
            seq=seq,
            text=piece.text,
            token_ids=(token_id,),
            finish_reason=piece.finish_reason,
        )

    @property
    def usage(self) -> Usage:
        """What was computed so far."""
        return Usage(prompt_tokens=len(self.request.prompt_ids), completion_tokens=self._answer.num_tokens)


def _internal(error: Exception) -> InternalError:
    """The error's own text may quote the prompt, so it goes to the log alone."""
    return InternalError(f"The engine failed on this request ({type(error).__name__}).", hint="See the server's log.")
