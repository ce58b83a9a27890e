import asyncio
import socket
import struct

import msgspec
import pytest

from mlxm import frames
from mlxm.errors import BY_CODE, InternalError, InvalidRequest, MlxmError, ProtocolMismatch
from mlxm.frames import Cancel, Decoder, Fault, Load, LoadProgress, Shutdown, ToWorker, encode

BOUND_S = 20


def read(data: bytes) -> list[object]:
    """What a stream that holds `data` decodes to, the end as None."""

    async def run() -> list[object]:
        stream = asyncio.StreamReader()
        stream.feed_data(data)
        stream.feed_eof()
        decoder = Decoder(ToWorker)
        found: list[object] = []
        async with asyncio.timeout(BOUND_S):
            while not found or found[-1] is not None:
                found.append(await decoder.read(stream))
        return found

    return asyncio.run(run())


def read_blocking(data: bytes) -> list[object]:
    """The same from a socket whose other end sends `data` and closes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(BOUND_S)
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        decoder = Decoder(ToWorker)
        found: list[object] = []
        while not found or found[-1] is not None:
            found.append(decoder.read_blocking(ours))
        return found


@pytest.mark.parametrize("reader", [read, read_blocking])
def test_frames_arrive_as_they_were_sent(reader: type[object]) -> None:
    """One after the other, until the other side closes; half a frame at the end is no frame."""
    sent = [Load(path="/models/\u00e9"), Cancel(request_id="a", reason="its reader has left"), Shutdown()]
    data = b"".join(map(encode, sent))
    assert reader(data) == [*sent, None]  # type: ignore[call-arg]  # both are functions of one argument
    assert reader(data[:-1]) == [*sent[:-1], None]  # type: ignore[call-arg]  # as above


@pytest.mark.parametrize("reader", [read, read_blocking])
@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 5) + b"hello",
        struct.pack(">I", 1) + b"\xc1",
        encode(LoadProgress(done_bytes=1, total_bytes=2)),
        struct.pack(">I", frames.MAX_FRAME_BYTES + 1),
    ],
    ids=["no struct", "no msgpack", "a frame for the other side", "a length beyond the limit"],
)
def test_what_is_no_frame_of_ours_is_refused(reader: type[object], data: bytes) -> None:
    """Nothing is made of it, and no memory taken for it."""
    with pytest.raises(ProtocolMismatch):
        reader(data)  # type: ignore[call-arg]  # as above


def test_a_frame_that_is_too_long_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other side would refuse it."""
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 100)
    encode(Load(path="x" * 20))
    with pytest.raises(ProtocolMismatch, match="over the limit of 100"):
        encode(Load(path="x" * 100))


@pytest.mark.parametrize("frame", [Load(path="\udcff"), LoadProgress(done_bytes=2**64, total_bytes=2**70)])
def test_what_no_frame_can_carry_is_refused(frame: msgspec.Struct) -> None:
    """Half a character and a number beyond 64 bits are the request's fault, and end nobody else's."""
    with pytest.raises(InvalidRequest):
        encode(frame)


@pytest.mark.parametrize("kind", BY_CODE.values())
def test_every_error_travels_as_it_is(kind: type[MlxmError]) -> None:
    """Kind, words and all that goes with them."""
    sent = kind("It failed.", hint="Try again.", param="model", retry_after_s=2.5)
    received = Fault.of(sent).error()
    assert (type(received), vars(received)) == (kind, vars(sent))


def test_an_error_of_another_version_is_an_internal_one() -> None:
    """Its words are kept."""
    received = Fault(code="not_known_here", message="It failed.").error()
    assert (type(received), received.message) == (InternalError, "It failed.")


def test_no_two_errors_share_a_code() -> None:
    """A code leads to one kind only."""

    def kinds(root: type[MlxmError]) -> list[type[MlxmError]]:
        return [kind for child in root.__subclasses__() for kind in (child, *kinds(child))]

    ours = [kind for kind in kinds(MlxmError) if kind.__module__ == "mlxm.errors"]
    assert len(ours) == len(BY_CODE) > 20
