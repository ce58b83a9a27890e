"""The fake Hub's connections: answers as bytes on a socket, and everything that can go wrong with them."""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_SLICE_S = 0.02
_HOLD_LIMIT_S = 60.0
_LEAVE_ON_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Mishap:
    """What goes wrong with the requests that fit; `times` None means always.

    `path` is a glob over the path without its query. Bodies can be held back until an event, trickled, cut after some
    bytes (`resets` as a broken connection, otherwise as an early end) or replaced; `status` answers with an error.
    """

    path: str = "*"
    method: str | None = None
    times: int | None = 1
    status: int | None = None
    error_code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    bytes_per_s: float | None = None
    cut_after: int | None = None
    resets: bool = False
    replace: Callable[[bytes], bytes] | None = None

    def fits(self, method: str, path: str) -> bool:
        """Whether a request is meant."""
        return self.method in (None, method) and fnmatchcase(path, self.path)


@dataclass
class Seen:
    """A request as it came in, its headers in lower case, and how many bytes of body went out."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    status: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class _QuietHTTPServer(ThreadingHTTPServer):
    """Clients that break connections off are a part of tests."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Server:
    """One address; a thread per connection. `receive` hears of each request first and says what goes wrong with it."""

    def __init__(
        self,
        receive: Callable[[Seen], Mishap | None],
        answer: Callable[[Seen], Answer],
        stopping: threading.Event,
    ) -> None:
        class Handler(_Handler):
            pass

        Handler.receive, Handler.answer, Handler.stopping = staticmethod(receive), staticmethod(answer), stopping
        self._http = _QuietHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(_SLICE_S,), daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Listen no more; connections that are open end by themselves."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    receive: Callable[[Seen], Mishap | None]
    answer: Callable[[Seen], Answer]
    stopping: threading.Event

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def log_message(self, *_: object) -> None:
        """Tests read `requests` instead."""

    def _serve(self) -> None:
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, url.path, parse_qs(url.query, keep_blank_values=True), headers)
        mishap = type(self).receive(seen)
        try:
            if mishap is not None and mishap.hold is not None:
                mishap.hold.wait(_HOLD_LIMIT_S)
            self._send(seen, type(self).answer(seen), mishap)
        except ConnectionError:
            self.close_connection = True  # the client has left

    def _send(self, seen: Seen, answer: Answer, mishap: Mishap | None) -> None:
        if mishap is not None and mishap.status is not None:
            answer = failure(mishap.status, mishap.error_code, HTTPStatus(mishap.status).phrase, mishap.headers)
        elif mishap is not None:
            body = answer.body if mishap.replace is None or self.command == "HEAD" else mishap.replace(answer.body)
            answer = Answer(answer.status, body, {**answer.headers, **mishap.headers})
        seen.status = answer.status
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(seen, answer.body, mishap)

    def _send_body(self, seen: Seen, body: bytes, mishap: Mishap | None) -> None:
        whole = body if mishap is None or mishap.cut_after is None else body[: mishap.cut_after]
        pace = None if mishap is None else mishap.bytes_per_s
        step = max(1, len(whole) if pace is None else int(pace * _SLICE_S))
        for start in range(0, len(whole), step):
            part = whole[start : start + step]
            self.wfile.write(part)
            seen.sent_bytes += len(part)
            if pace is not None and self.stopping.wait(_SLICE_S):
                break
        if mishap is not None and mishap.cut_after is not None:
            self._break_off(resets=mishap.resets)

    def _break_off(self, *, resets: bool) -> None:
        self.close_connection = True
        if resets:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LEAVE_ON_RESET)
            self.connection.close()


def ranged(seen: Seen, content: bytes, headers: Mapping[str, str]) -> Answer:
    """The file, or what a Range header of the form `bytes=N-` or `bytes=N-M` asks for."""
    asked = seen.headers.get("range")
    if seen.method == "HEAD" or asked is None:
        return Answer(200, content, headers)
    first, _, last = asked.removeprefix("bytes=").partition("-")
    start, end = int(first), int(last) + 1 if last else len(content)
    if start >= len(content):
        return Answer(416, headers={**headers, "Content-Range": f"bytes */{len(content)}"})
    part = content[start:end]
    span = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
    return Answer(206, part, {**headers, "Content-Range": span})


def as_json(value: Any, headers: Mapping[str, str] | None = None) -> Answer:
    """A document."""
    kind = {"Content-Type": "application/json; charset=utf-8"}
    return Answer(200, json.dumps(value).encode(), kind if headers is None else {**kind, **headers})


def failure(status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An error, in the Hub's way of telling them."""
    said = {"Content-Type": "application/json", "X-Error-Message": message}
    if code is not None:
        said["X-Error-Code"] = code
    return Answer(status, json.dumps({"error": message}).encode(), said if headers is None else {**said, **headers})
