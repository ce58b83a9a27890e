"""What one client may cost: the bounds that the server holds each request to."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and times of one request; after `keep_alive_s` without a word a stream says that it lives."""

    max_body_bytes: int = 10 * 1024**2
    body_timeout_s: float = 60.0
    send_timeout_s: float = 30.0
    keep_alive_s: float = 15.0
