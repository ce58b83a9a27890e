import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlxm.downloads import Progress
from mlxm.errors import InternalError, MlxmError, ModelNotFound, ServerUnreachable
from mlxm.remote import Remote, find_server
from mlxm.store.control import Control, publish_control
from mlxm.store.lock import HomeLock

PROBLEM = b'{"error": {"message": "There is none.", "code": "%s", "param": "model"}, "hint": "Look elsewhere."}'


@contextmanager
def answering(status: int, body: bytes) -> Iterator[Remote]:
    """A server that gives one answer to everything, seen as a remote one."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing is to be told."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            with Remote(Control(url=f"http://127.0.0.1:{server.server_port}", token="t")) as remote:
                yield remote
        finally:
            server.shutdown()
            thread.join()


def test_answer_is_read_into_structs() -> None:
    """As the server's own."""
    with answering(200, b'[{"id": "1", "name": "a/b", "revision": "main", "state": "done"}]') as remote:
        assert remote.downloads() == (Progress(id="1", name="a/b", revision="main", state="done"),)


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (404, PROBLEM % b"model_not_found", ModelNotFound, "There is none."),
        (405, PROBLEM % b"method_not_allowed", InternalError, "There is none."),
        (500, b"oops", InternalError, "The server answered with status 500."),
        (200, b"oops", InternalError, "The server is of another version"),
    ],
)
def test_failure_is_the_servers_own(status: int, body: bytes, kind: type[MlxmError], message: str) -> None:
    """Kind, message and hint; what cannot be understood is a failure of its own."""
    with answering(status, body) as remote, pytest.raises(kind, match=message) as caught:
        remote.download("1")

    assert caught.value.hint == ("Look elsewhere." if b"Look" in body else None)


def test_server_that_does_not_answer_is_unreachable() -> None:
    """Its address is named."""
    with Remote(Control(url="http://127.0.0.1:9", token="t")) as remote, pytest.raises(ServerUnreachable, match=":9 "):
        remote.downloads()


def test_no_proxy_sees_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is on this machine, whatever the way to others is."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with answering(200, b"[]") as remote:
        assert remote.downloads() == ()


def test_server_is_found_by_its_home(tmp_path: Path) -> None:
    """While it holds the lock, and has said where it is."""
    assert find_server(tmp_path) is None
    with HomeLock(tmp_path):
        assert find_server(tmp_path) is None
        publish_control(tmp_path, Control(url="http://127.0.0.1:1", token="t"))
        server = find_server(tmp_path)
        assert server is not None
        server.close()
        assert server.url == "http://127.0.0.1:1"
    assert find_server(tmp_path) is None
