"""One response on its way: what was said before, the answer, and keeping it when it is to be kept.

When all turns together are too long and the client allows it, the oldest are left out, more of them each time.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import cache

import msgspec

from mlxm.errors import Cancelled, ContextTooLong
from mlxm.server.live import Fail
from mlxm.server.room import chat_in_room
from mlxm.store.responses import Responses, StoredResponse
from mlxm.types import Backend, ChatRequest, Ended, Event, Message
from mlxm.wire.kinds import Json
from mlxm.wire.openai_responses import ResponsesRequest
from mlxm.wire.openai_responses_answers import Heading, Response
from mlxm.wire.openai_responses_events import EventWriter
from mlxm.wire.openai_responses_items import with_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a talk is about; `store` is where it is kept, and None when it is not to be."""

    request: ResponsesRequest
    request_id: str
    response_id: str
    past: Responses | None
    store: Responses | None


class Talk:
    """One request for a response; `under_way` knows it by its id while it runs."""

    def __init__(self, asked: Asked, under_way: dict[str, Talk]) -> None:
        self._asked = asked
        self._under_way = under_way
        self._created_at = time.time()
        self._fail: Fail | None = None
        self.heading = Heading.of(
            asked.request,
            asked.response_id,
            clock=cache(lambda: int(time.time())),  # so that what is kept is what was sent
            is_stored=asked.store is not None,
        )
        self._kept = EventWriter(self.heading)

    def begin(self, fail: Fail) -> None:
        """Take what ends the answer."""
        self._fail = fail

    async def events(self, backend: Backend) -> AsyncGenerator[Event, None]:
        """The answer: Started first, Ended last, when it is kept already."""
        self._under_way[self._asked.response_id] = self
        try:
            async with aclosing(self._answer(backend, await self._past_items())) as events:
                async for event in events:
                    self._kept.write(event)
                    if isinstance(event, Ended):
                        self._under_way.pop(self._asked.response_id, None)
                        await self._keep(self._kept.response)
                    yield event
        finally:
            self._under_way.pop(self._asked.response_id, None)

    async def cancel(self) -> Response:
        """End the answer, and keep what there is of it."""
        response = self._kept.cancelled()
        if self._fail is not None:
            self._fail(Cancelled("The response was cancelled."))
        await self._keep(response)
        return response

    async def _past_items(self) -> tuple[Json, ...]:
        """What was said and answered before."""
        previous_id = self._asked.request.previous_response_id
        if previous_id is None or self._asked.past is None:
            return ()
        chain = await self._asked.past.chain(previous_id)
        lists = [items for each in chain for items in (each.input, each.output)]
        return tuple(item for items in lists for item in msgspec.json.decode(items, type=list[msgspec.Raw]))

    async def _answer(self, backend: Backend, history: tuple[Json, ...]) -> AsyncGenerator[Event, None]:
        chat = self._asked.request.to_chat(self._asked.request_id, history)
        shorter = _ever_shorter(chat) if self._asked.request.may_truncate else iter(())
        while True:
            is_begun = False
            try:
                async with aclosing(chat_in_room(backend, chat)) as events:
                    async for event in events:
                        is_begun = True
                        yield event
            except ContextTooLong:
                found = None if is_begun else next(shorter, None)
                if found is None:
                    raise
                chat = found
            else:
                return

    async def _keep(self, response: Response) -> None:
        if self._asked.store is None:
            return
        hexadecimal = self._asked.response_id.removeprefix("resp_")
        await self._asked.store.add(
            StoredResponse(
                id=self._asked.response_id,
                created_at=self._created_at,
                previous_id=self._asked.request.previous_response_id,
                input=msgspec.json.encode(with_ids(self._asked.request.items, f"in{hexadecimal}")),
                output=msgspec.json.encode(response.output),
                response=msgspec.json.encode(response),
            )
        )


def _ever_shorter(chat: ChatRequest) -> Iterator[ChatRequest]:
    """The same request with its oldest turns left out: 1, 2, 4 and so on, down to the last one.

    What the system says at the beginning stays. A turn begins with what a person says.
    """
    messages = chat.messages
    first = next((place for place, message in enumerate(messages) if not _is_lasting(message)), len(messages))
    starts = [place for place in range(first + 1, len(messages)) if messages[place].role == "user"]
    num_left_out = 1
    while starts:
        start = starts[min(num_left_out, len(starts)) - 1]
        yield msgspec.structs.replace(chat, messages=(*messages[:first], *messages[start:]))
        if num_left_out >= len(starts):
            return
        num_left_out *= 2


def _is_lasting(message: Message) -> bool:
    return message.role in ("system", "developer")
