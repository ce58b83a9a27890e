"""What one client may cost: the bounds that the server holds each request to."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and times of one request; after `keep_alive_s` without a word a stream says that it lives.

    More than `max_requests` at a time are turned away.
    """

    max_body_bytes: int = 10 * 1024**2
    body_timeout_s: float = 60.0
    body_idle_s: float = 15.0
    send_timeout_s: float = 30.0
    keep_alive_s: float = 15.0
    max_requests: int = 512


class Deadline(msgspec.Struct, frozen=True, kw_only=True):
    """How long an answer may take, and the setting that says so."""

    within_s: float
    setting: str


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long whole answers may take: those of the models here, and those of each kind of route."""

    local_s: float = 900.0
    chat_s: float = 900.0
    completions_s: float = 600.0

    def chat(self) -> Deadline:
        """For conversations."""
        return self._smaller(Deadline(within_s=self.chat_s, setting="timeouts.chat_s"))

    def completions(self) -> Deadline:
        """For texts that are gone on with."""
        return self._smaller(Deadline(within_s=self.completions_s, setting="timeouts.completions_s"))

    def _smaller(self, of_route: Deadline) -> Deadline:
        of_backend = Deadline(within_s=self.local_s, setting="timeouts.local_s")
        return min(of_route, of_backend, key=lambda deadline: deadline.within_s)
