import msgspec
import pytest

from mlxm.errors import InvalidRequest, UnsupportedParameter
from mlxm.wire.fields import decode, refuse_unknown, split_fields


class Shape(msgspec.Struct):
    """Something to decode."""

    number: int = 0
    inner: list[dict[str, int]] = []


def refuse(body: bytes) -> tuple[str, ...]:
    """Hold a body against one table of each kind."""
    return refuse_unknown(
        split_fields(body),
        known=frozenset({"known"}),
        no_ops={"one": (1,), "off": (False,), "never": (), "many": ("a", [])},
        tolerated=frozenset({"user"}),
    )


@pytest.mark.parametrize(
    "body", [b"{}", b'{"known": 5}', b'{"one": 1}', b'{"one": 1.0}', b'{"off": false}', b'{"many": []}', b'{"x": null}']
)
def test_what_changes_nothing_passes(body: bytes) -> None:
    """Fields that act, values that ask for what happens anyway, and null."""
    assert refuse(body) == ()


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"one": 2}', "one"),
        (b'{"one": true}', "one"),
        (b'{"off": 0}', "off"),
        (b'{"never": 1}', "never"),
        (b'{"many": ["a"]}', "many"),
        (b'{"known": 1, "typo": 1}', "typo"),
    ],
)
def test_what_would_be_dropped_is_refused_by_name(body: bytes, name: str) -> None:
    """The error carries the field's name, for programs and for people."""
    with pytest.raises(UnsupportedParameter) as caught:
        refuse(body)
    assert caught.value.param == name
    assert name in caught.value.message


def test_tolerated_fields_are_told() -> None:
    """What is ignored comes back, to be named in the answer."""
    assert refuse(b'{"user": "me", "known": 1}') == ("user",)


def test_strange_names_are_made_printable() -> None:
    """A field's name is the client's text: it is shown escaped and short."""
    with pytest.raises(UnsupportedParameter) as caught:
        refuse(msgspec.json.encode({"\x1b[31m" + "x" * 500: 1}))
    assert caught.value.param is not None
    assert caught.value.param.isprintable()
    assert len(caught.value.param) < 80


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"number": 1} {', "not valid JSON"),
        (b'{"number": NaN}', "not valid JSON"),
        (b'{"x": "\xff"}', "not valid UTF-8"),
        (b'{"\xff": 1}', "not valid UTF-8"),
        (b'{"x": "\xc0\x80"}', "not valid UTF-8"),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b"[]", "does not fit"),
        (b"null", "does not fit"),
    ],
)
def test_broken_bodies_are_refused(body: bytes, said: str) -> None:
    """Whatever is wrong with the bytes themselves is an invalid request, never another exception."""
    with pytest.raises(InvalidRequest, match=said):
        split_fields(body)


def test_misfits_name_their_place() -> None:
    """Places are written as clients know them, and nothing is converted."""
    with pytest.raises(InvalidRequest) as caught:
        decode(b'{"number": "12"}', Shape)
    assert (caught.value.param, caught.value.message) == ("number", "number: Expected `int`, got `str`.")
    with pytest.raises(InvalidRequest) as caught:
        decode(b'{"inner": [{}, 5]}', Shape)
    assert caught.value.param == "inner[1]"


def test_values_of_no_ops_may_be_anything() -> None:
    """A value that is only compared is bounded too."""
    with pytest.raises(InvalidRequest):
        refuse(b'{"one": ' + b"9" * 100_000 + b"}")
