import os
import socket

import pytest

from mlxm.errors import ConfigInvalid, OpenWithoutKey, PortInUse
from mlxm.server.listen import find_listener, open_listener


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
