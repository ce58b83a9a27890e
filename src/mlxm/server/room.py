"""Answers in dialects that take the wish for many tokens as a bound: what the context has no room for is not missed.

Their clients always name a number, and name the largest that any model knows.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from mlxm.errors import ContextTooLong
from mlxm.types import Backend, ChatRequest, Event


async def chat_in_room(backend: Backend, chat: ChatRequest) -> AsyncGenerator[Event, None]:
    """The answer to `chat`, up to the context's end if that comes first; ContextTooLong when there is no room."""
    is_begun = False
    try:
        async with aclosing(backend.chat(chat)) as events:
            async for event in events:
                is_begun = True
                yield event
    except ContextTooLong:
        if is_begun or chat.max_tokens is None:
            raise
    else:
        return
    async with aclosing(backend.chat(msgspec.structs.replace(chat, max_tokens=None))) as events:
        async for event in events:
            yield event
