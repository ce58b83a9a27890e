from __future__ import annotations

import asyncio
import base64
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from mlxm.errors import InvalidRequest, NotFound, SecretUnreadable
from mlxm.store import keyfiles
from mlxm.store.db import Database
from mlxm.store.secrets import Secrets, mask

FEW = 10
PATIENCE_S = 20
KEY = "sk-sentinel-3f9c-abcd"

Body = Callable[[Secrets], Coroutine[Any, Any, None]]


@asynccontextmanager
async def opened(home: Path, iterations: int = FEW) -> AsyncIterator[Secrets]:
    """The secrets of `home`, as a process that has just started sees them."""
    async with await Database.open(home / "mlxm.db") as db:
        yield Secrets(db, home, iterations=iterations)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that is not there yet."""
    return tmp_path / "home"


@pytest.fixture
def with_secrets(home: Path) -> Callable[[Body], None]:
    """Runs a test's body in a process that has just started, as often as wanted."""

    def run(body: Body) -> None:
        async def main() -> None:
            async with opened(home) as secrets:
                await asyncio.wait_for(body(secrets), PATIENCE_S)

        asyncio.run(main())

    return run


@pytest.fixture
def filled(home: Path, with_secrets: Callable[[Body], None]) -> Path:
    """A home with two values in it."""

    async def fill(secrets: Secrets) -> None:
        await secrets.put("openai", KEY)
        await secrets.put("anthropic", "other")

    with_secrets(fill)
    return home


def test_values_come_back_after_a_restart(filled: Path, with_secrets: Callable[[Body], None]) -> None:
    """The key is found again from the two files; a second put replaces the first."""

    async def body(secrets: Secrets) -> None:
        assert await secrets.names() == ("anthropic", "openai")
        assert await secrets.get("openai") == KEY
        assert await secrets.unreadable() == ()
        await secrets.put("openai", "new – ü")
        assert await secrets.get("openai") == "new – ü"

    with_secrets(body)
    assert filled.is_dir()


def test_neither_value_nor_passphrase_lies_in_the_database(filled: Path) -> None:
    """A copy of the database alone is worth nothing; a copy of the key files alone neither."""
    content = b"".join(path.read_bytes() for path in filled.glob("mlxm.db*"))
    assert KEY.encode() not in content
    assert (filled / "secret").read_bytes() not in content
    with closing(sqlite3.connect(filled / "mlxm.db")) as connection:
        assert connection.execute("SELECT name FROM secrets ORDER BY name").fetchall() == [("anthropic",), ("openai",)]


def test_the_key_files_are_for_their_owner_alone_and_random(filled: Path, tmp_path: Path) -> None:
    """32 bytes of passphrase, 16 of salt, other ones in every home."""
    assert stat.S_IMODE(filled.stat().st_mode) == 0o700
    assert [stat.S_IMODE((filled / name).stat().st_mode) for name in ("secret", "salt")] == [0o600, 0o600]
    assert [(filled / name).stat().st_size for name in ("secret", "salt")] == [32, 16]
    (tmp_path / "other").mkdir(mode=0o700)
    keyfiles.KeyFiles(tmp_path / "other").mend()
    for name in ("secret", "salt"):
        assert (filled / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_the_key_is_pbkdf2_with_one_million_two_hundred_thousand_rounds(home: Path) -> None:
    """Another implementation with the same recipe reads what we wrote with the default."""

    async def main() -> None:
        async with await Database.open(home / "mlxm.db") as db:
            await Secrets(db, home).put("openai", KEY)

    asyncio.run(main())
    derivation = PBKDF2HMAC(SHA256(), length=32, salt=(home / "salt").read_bytes(), iterations=1_200_000)
    fernet = Fernet(base64.urlsafe_b64encode(derivation.derive((home / "secret").read_bytes())))
    with closing(sqlite3.connect(home / "mlxm.db")) as connection:
        ((ciphertext,),) = connection.execute("SELECT ciphertext FROM secrets").fetchall()
    assert fernet.decrypt(ciphertext) == KEY.encode()


def test_the_key_is_derived_once_and_off_the_event_loop(
    filled: Path, with_secrets: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten readers at once, one of them cancelled, cost one derivation, which waits here for the loop to go on."""
    derived: list[threading.Thread] = []
    begun, loop_went_on = threading.Event(), threading.Event()
    derive = keyfiles.hashlib.pbkdf2_hmac

    def slow(name: str, secret: bytes, salt: bytes, iterations: int) -> bytes:
        derived.append(threading.current_thread())
        begun.set()
        assert loop_went_on.wait(PATIENCE_S), "the event loop stood still"
        return derive(name, secret, salt, iterations)

    async def body(secrets: Secrets) -> None:
        monkeypatch.setattr(keyfiles.hashlib, "pbkdf2_hmac", slow)
        first, *others = [asyncio.create_task(secrets.get("openai")) for _ in range(10)]
        assert await asyncio.to_thread(begun.wait, PATIENCE_S)
        begun.clear()
        first.cancel()
        await asyncio.wait([first])
        assert not await asyncio.to_thread(begun.wait, 0.2), "a second derivation began"
        loop_went_on.set()
        assert await asyncio.gather(*others) == [KEY] * 9
        await secrets.put("third", "value")
        assert len(derived) == 1
        assert derived[0] is not threading.main_thread()

    with_secrets(body)
    assert filled.is_dir()


def test_what_needs_no_key_derives_none(
    filled: Path, with_secrets: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, deletions and unknown names cost nothing, even when the key is lost."""
    monkeypatch.setattr(keyfiles.hashlib, "pbkdf2_hmac", lambda *_: pytest.fail("a key was derived"))
    (filled / "secret").unlink()

    async def body(secrets: Secrets) -> None:
        await secrets.delete("anthropic")
        assert await secrets.names() == ("openai",)
        with pytest.raises(NotFound, match="anthropic"):
            await secrets.get("anthropic")
        with pytest.raises(NotFound, match="anthropic"):
            await secrets.delete("anthropic")
        await secrets.delete("openai")
        assert await secrets.unreadable() == ()

    with_secrets(body)


def test_nothing_is_made_before_the_first_value(home: Path, with_secrets: Callable[[Body], None]) -> None:
    """Asking leaves no files behind."""

    async def body(secrets: Secrets) -> None:
        assert await secrets.names() == ()
        assert await secrets.unreadable() == ()
        with pytest.raises(InvalidRequest, match="name"):
            await secrets.put("", "value")

    with_secrets(body)
    assert not (home / "secret").exists()
    assert not (home / "salt").exists()


def lose(path: Path) -> None:
    """The file is gone."""
    path.unlink()


def cut(path: Path) -> None:
    """The file has lost its last byte."""
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    """Somebody has opened the file in an editor."""
    path.write_bytes(path.read_bytes() + b"\n")


def exchange(path: Path) -> None:
    """The file is one of another home."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("name", ["secret", "salt"])
@pytest.mark.parametrize("harm", [lose, cut, lengthen, exchange])
def test_a_lost_key_is_noticed_named_and_reset(
    filled: Path, with_secrets: Callable[[Body], None], harm: Callable[[Path], None], name: str
) -> None:
    """Reading and writing name the values to enter again; a reset drops exactly those, and then all works."""
    harm(filled / name)

    async def refused(secrets: Secrets) -> None:
        for attempt in (secrets.get("openai"), secrets.put("third", "value")):
            with pytest.raises(SecretUnreadable, match="cannot be read: anthropic, openai") as caught:
                await attempt
            assert str(filled) in caught.value.message
            assert caught.value.hint is not None
            assert caught.value.hint.endswith("enter again: anthropic, openai.")
        assert await secrets.unreadable() == ("anthropic", "openai")
        assert await secrets.names() == ("anthropic", "openai")

    async def reset(secrets: Secrets) -> None:
        assert await secrets.reset() == ("anthropic", "openai")
        assert await secrets.names() == ()
        await secrets.put("openai", "entered again")

    async def after(secrets: Secrets) -> None:
        assert await secrets.get("openai") == "entered again"
        assert await secrets.reset() == ()
        assert await secrets.get("openai") == "entered again"

    for body in (refused, reset, after):
        with_secrets(body)


def test_a_damaged_value_is_named_alone(filled: Path, with_secrets: Callable[[Body], None]) -> None:
    """The others stay readable, and a reset drops only the damaged one."""
    with closing(sqlite3.connect(filled / "mlxm.db")) as connection:
        connection.execute("UPDATE secrets SET ciphertext = x'00' WHERE name = 'openai'")
        connection.commit()

    async def body(secrets: Secrets) -> None:
        with pytest.raises(SecretUnreadable, match="value of openai in the database is damaged") as caught:
            await secrets.get("openai")
        assert "anthropic" not in f"{caught.value.message} {caught.value.hint}"
        assert await secrets.unreadable() == ("openai",)
        assert await secrets.reset() == ("openai",)
        assert await secrets.get("anthropic") == "other"

    with_secrets(body)


def test_a_process_that_still_has_the_old_key_does_not_write_with_it(
    filled: Path, with_secrets: Callable[[Body], None]
) -> None:
    """After a reset elsewhere its values would be unreadable for everybody else."""

    async def body(old: Secrets) -> None:
        assert await old.get("openai") == KEY
        exchange(filled / "secret")
        async with opened(filled) as other:
            await other.reset()
            await other.put("openai", "new")
        with pytest.raises(SecretUnreadable, match="not those of this database"):
            await old.put("anthropic", "value")
        assert await old.names() == ("openai",)

    with_secrets(body)


@pytest.mark.parametrize("name", ["secret", "salt"])
def test_a_key_file_that_others_can_read_is_refused_until_its_mode_is_right(
    filled: Path, with_secrets: Callable[[Body], None], name: str
) -> None:
    """The cure is a chmod, not a reset: nothing is dropped, and the same process works afterwards."""
    (filled / name).chmod(0o640)

    async def body(secrets: Secrets) -> None:
        for attempt in (secrets.get("openai"), secrets.put("a", "b"), secrets.unreadable(), secrets.reset()):
            with pytest.raises(SecretUnreadable, match=f"{name} has mode 0640") as caught:
                await attempt
            assert caught.value.hint == f"chmod 600 {filled / name}"
        (filled / name).chmod(0o600)
        assert await secrets.get("openai") == KEY

    with_secrets(body)


@pytest.mark.parametrize("name", ["secret", "salt"])
def test_a_key_file_behind_a_symlink_is_refused(filled: Path, with_secrets: Callable[[Body], None], name: str) -> None:
    """Even when it points to the very same bytes; a reset does not replace it either."""
    (filled / name).rename(filled / "elsewhere")
    (filled / name).symlink_to(filled / "elsewhere")

    async def body(secrets: Secrets) -> None:
        for attempt in (secrets.get("openai"), secrets.reset()):
            with pytest.raises(SecretUnreadable, match=f"{name} is not a plain file"):
                await attempt

    with_secrets(body)
    assert (filled / name).is_symlink()


def test_a_home_that_others_can_write_is_refused(filled: Path, with_secrets: Callable[[Body], None]) -> None:
    """They could exchange the files for their own."""
    filled.chmod(0o777)

    async def body(secrets: Secrets) -> None:
        with pytest.raises(SecretUnreadable, match="others") as caught:
            await secrets.get("openai")
        assert caught.value.hint == f"chmod 700 {filled}"

    with_secrets(body)


@pytest.mark.parametrize(
    ("value", "shown"),
    [("sk-abcdef1234", "****1234"), ("12345678", "****5678"), ("1234567", "****"), ("abcd", "****"), ("", "****")],
)
def test_a_mask_shows_four_characters_of_a_long_value_and_none_of_a_short_one(value: str, shown: str) -> None:
    """Four of seven would be too many."""
    assert mask(value) == shown
