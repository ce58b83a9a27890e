import socket
import threading
from collections.abc import Iterator

import pytest

from mlxm.frames import Cancel, Decoder, Shutdown, ToWorker, encode
from mlxm.worker.link import PARENT_GONE, Link

LIMIT_S = 10.0


class Parent:
    """The other end of a link, and what the link did when it had to leave."""

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(LIMIT_S)
        self.statuses: list[int] = []
        self.left = threading.Event()
        self._theirs = theirs
        self.link = Link(theirs, leave=self._leave)

    def _leave(self, status: int) -> None:
        self.statuses.append(status)
        self.left.set()

    def close(self) -> None:
        """Leave, and see the link off."""
        self.sock.close()
        self.left.wait(LIMIT_S)
        self._theirs.close()


@pytest.fixture
def parent() -> Iterator[Parent]:
    """A link with this test as its parent."""
    made = Parent()
    yield made
    made.close()


def test_frames_arrive_in_order(parent: Parent) -> None:
    """In both directions, also when they come in crumbs."""
    frames = [Cancel(request_id=str(number), reason="test") for number in range(3)]
    for byte in b"".join(map(encode, frames)):
        parent.sock.send(bytes([byte]))
    assert frames == [parent.link.receive() for _ in frames]
    assert parent.link.poll() is None
    for frame in frames:
        parent.link.send(frame)
    decoder = Decoder(ToWorker)
    assert frames == [decoder.read_blocking(parent.sock) for _ in frames]


def test_sending_never_waits_for_the_reader(parent: Parent) -> None:
    """Far more than a socket holds is taken at once, and arrives whole."""
    large = Cancel(request_id="x", reason="y" * 4_000_000)
    for _ in range(3):
        parent.link.send(large)
    decoder = Decoder(ToWorker)
    assert [large] * 3 == [decoder.read_blocking(parent.sock) for _ in range(3)]


def test_flushing_waits_until_all_is_sent(parent: Parent) -> None:
    """The last frames of a worker that leaves are not lost."""
    parent.link.send(Shutdown())
    parent.link.flush()
    parent.sock.settimeout(0)
    assert encode(Shutdown()) == parent.sock.recv(100)


def test_the_end_of_the_parent_is_the_end(parent: Parent) -> None:
    """End-of-file is enough."""
    parent.sock.close()
    assert parent.left.wait(LIMIT_S)
    assert parent.statuses == [PARENT_GONE]


def test_a_frame_that_makes_no_sense_is_the_end(parent: Parent, capfd: pytest.CaptureFixture[str]) -> None:
    """The parent finds the reason in the last words."""
    parent.sock.sendall(b"\x00\x00\x00\x01\xc1")
    assert parent.left.wait(LIMIT_S)
    assert parent.statuses == [PARENT_GONE]
    assert "could not be read" in capfd.readouterr().err


def test_writing_to_a_parent_that_is_gone_is_the_end(parent: Parent) -> None:
    """Whichever thread notices first."""
    parent.sock.close()
    assert parent.left.wait(LIMIT_S)
    parent.link.send(Shutdown())
    parent.link.flush()
    assert set(parent.statuses) == {PARENT_GONE}
    assert len(parent.statuses) == 2
