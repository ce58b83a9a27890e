import asyncio
import os
import socket
import stat
from pathlib import Path

import httpx
import pytest

from mlxm.errors import ConfigInvalid, OpenWithoutKey, PortInUse
from mlxm.server.embedded import EmbeddedServer
from mlxm.server.listen import find_listener, open_listener, open_unix_listener
from mlxm.server.services import Services
from mlxm.testing.backends import EchoBackend
from tests.server.harness import BOUND_S, KeptLines


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3"])
def test_listens_on_loopback(host: str) -> None:
    """Names and addresses of this machine alone are taken, and connections wait there before anyone serves."""
    with open_listener(host, 0) as listener, socket.create_connection(listener.getsockname()[:2], timeout=5):
        assert listener.getsockname()[1] > 0


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])  # noqa: S104
def test_any_other_address_is_refused(host: str) -> None:
    """Without keys nobody but this machine's own users may come."""
    with pytest.raises(OpenWithoutKey) as caught:
        open_listener(host, 0)
    assert host in caught.value.message
    assert caught.value.hint is not None


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 300, "300.1.1.1", "\udcff"])
def test_no_such_address(host: str) -> None:
    """A host that means nothing is a mistake in the configuration."""
    with pytest.raises(ConfigInvalid):
        open_listener(host, 0)


def test_port_in_use_names_its_holder() -> None:
    """Also a port that was opened for sharing is not shared."""
    with open_listener("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortInUse) as caught:
            open_listener("127.0.0.1", port)
        assert f"(pid {os.getpid()})" in caught.value.message
        assert caught.value.hint is not None
        assert str(port + 1) in caught.value.hint


def test_port_that_was_used_before_is_free() -> None:
    """A server can be restarted at once, though old connections linger in the system."""
    with open_listener("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address), listener.accept()[0] as accepted:
            accepted.close()
    with open_listener(*address):
        pass


def test_port_that_may_not_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says is passed on."""

    def refuse(_self: socket.socket, _address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(ConfigInvalid, match="Permission denied"):
        open_listener("127.0.0.1", 80)


def test_nobody_listens() -> None:
    """A port without a listener has no holder."""
    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    assert find_listener(port) is None


def test_serves_at_a_path(tmp_path: Path) -> None:
    """For this user alone, whatever the umask."""
    path = tmp_path / "s.sock"
    listener = open_unix_listener(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    async def scenario() -> None:
        server = EmbeddedServer(Services(backend=EchoBackend(), log=KeptLines()), listener)
        task = asyncio.create_task(server.serve())
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=BOUND_S) as http:
            assert (await http.get("/health")).status_code == 200
        server.stop()
        await task

    asyncio.run(scenario())


def test_a_path_in_use_is_refused(tmp_path: Path) -> None:
    """As long as somebody listens there; what a killed process left is replaced."""
    path = tmp_path / "s.sock"
    with open_unix_listener(path), pytest.raises(PortInUse):
        open_unix_listener(path)
    open_unix_listener(path).close()


@pytest.mark.parametrize("name", ["file", "absent/s.sock", "x" * 200])
def test_a_path_that_can_be_no_socket_is_refused(tmp_path: Path, name: str) -> None:
    """Nothing that is there is ever overwritten."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigInvalid):
        open_unix_listener(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
