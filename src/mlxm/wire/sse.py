"""Server-sent events as bytes.

Payloads are compact JSON, so that one `data:` line holds one whole payload. JSON leaves three characters as they are
at which some clients break lines all the same; they are escaped.
"""

from __future__ import annotations

MEDIA_TYPE = "text/event-stream"
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"

_LINE_BREAKS = ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"))


def data(payload: bytes) -> bytes:
    """An event without a name."""
    for raw, escaped in _LINE_BREAKS:
        if raw in payload:
            payload = payload.replace(raw, escaped)
    return b"data: " + payload + b"\n\n"


def event(name: str, payload: bytes) -> bytes:
    """A named event."""
    return b"event: " + name.encode() + b"\n" + data(payload)
