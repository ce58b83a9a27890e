"""Server-sent events as bytes.

Payloads are compact JSON, which has no raw line break, so that one `data:` line always holds one whole payload.
"""

from __future__ import annotations

MEDIA_TYPE = "text/event-stream"
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def data(payload: bytes) -> bytes:
    """An event without a name."""
    return b"data: " + payload + b"\n\n"


def event(name: str, payload: bytes) -> bytes:
    """A named event."""
    return b"event: " + name.encode() + b"\n" + data(payload)
