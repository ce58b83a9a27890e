import msgspec

from mlxm.wire import sse


def test_data_is_one_line() -> None:
    """A payload goes out in one line, closed by an empty one."""
    assert sse.data(b'{"a":1}') == b'data: {"a":1}\n\n'


def test_no_client_breaks_the_line() -> None:
    """Whatever a text holds, a reader that knows every line break of Unicode still sees one line."""
    payload = msgspec.json.encode("".join(map(chr, range(0x3000))))
    event = sse.data(payload).decode()
    assert len(event.splitlines()) == 2
    assert msgspec.json.decode(event.removeprefix("data: ")) == msgspec.json.decode(payload)


def test_named_event() -> None:
    """The name goes before the data."""
    assert sse.event("error", b"{}") == b"event: error\ndata: {}\n\n"


def test_keep_alive_is_a_comment() -> None:
    """Parsers skip lines that begin with a colon."""
    assert sse.KEEP_ALIVE.startswith(b":")
    assert sse.KEEP_ALIVE.endswith(b"\n\n")
