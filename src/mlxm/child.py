"""One child process (worker, prep or download) and its stream of frames.

The child inherits one end of a socket pair: no path to guess, nothing left behind on disk, and the death of either
side is end-of-file for the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec

from mlxm.errors import InternalError, MlxmError, WorkerDied
from mlxm.frames import Decoder, Hello, Shutdown, check_hello, encode

LAST_WORDS_BYTES = 8192
_LINE_BYTES = 4096
_STREAM_LIMIT_BYTES = 1 << 20
_EXIT_S = 1.0


class Child:
    """A running `python -m MODULE` that has said hello."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        decoder: Decoder,
        on_words: Callable[[str], None] | None = None,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._decoder = decoder
        self._on_words = on_words
        self._last_words = b""
        self._stderr_task = asyncio.create_task(self._keep_stderr())

    @classmethod
    async def start(
        cls,
        module: str,
        frames: Any,
        *,
        arguments: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
        hello_timeout_s: float = 60.0,
        on_words: Callable[[str], None] | None = None,
    ) -> Child:
        """Exec `python -m module --fd N …` and wait for its hello; `frames` is the union it may send.

        `on_words` is told each line that it writes on stderr.
        -P keeps the current folder off the child's import path: a jinja2.py lying there must not be run.
        """
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise _could_not_start(module, error) from error
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", module, "--fd", str(theirs.fileno()), *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env=environ,
                start_new_session=True,  # Ctrl-C is for the server, which then asks its children to leave
            )  # fmt: skip
        except OSError as error:
            ours.close()
            raise _could_not_start(module, error) from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            reader, writer = await asyncio.open_connection(sock=ours, limit=_STREAM_LIMIT_BYTES)
        except BaseException:
            ours.close()
            process.kill()
            await process.wait()
            raise
        child = cls(process, reader, writer, Decoder(frames), on_words)
        try:
            await child._greet(module, hello_timeout_s)
        except BaseException:
            await child.kill()
            raise
        return child

    async def _greet(self, module: str, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                hello = await self._decoder.read(self._reader)
        except TimeoutError as error:
            raise WorkerDied(f"{module} did not answer within {timeout_s:g} s.") from error
        if not isinstance(hello, Hello):
            raise await self.death(module)
        check_hello(hello)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How the process ended, negative for a signal; None while it runs."""
        return self._process.returncode

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.returncode is None

    def send(self, frame: msgspec.Struct) -> None:
        """Queue a frame; a dead child makes no noise here, its end is seen by `frames`."""
        if not self._writer.is_closing():
            self._writer.write(encode(frame))

    async def frames(self) -> AsyncIterator[Any]:
        """All frames until the child closes its end; for one reader only."""
        while (frame := await self._decoder.read(self._reader)) is not None:
            yield frame

    async def stop(self, grace_s: float = 5.0) -> None:
        """Ask the child to leave, and end it when it does not."""
        self.send(Shutdown())
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            pass  # asked politely for long enough: kill() below
        await self.kill()

    async def kill(self) -> None:
        """End the child now, and collect it."""
        with contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:
                self._process.kill()
        await self._process.wait()
        await asyncio.wait([self._stderr_task])  # a caller that is cancelled here must not cancel it for others
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def death(self, name: str) -> MlxmError:
        """Why the child ended, with its last words; call it only once its frames have ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_S):  # its socket closes a little before its own end
                await self._process.wait()
        await self.kill()
        code = self._process.returncode
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        lines = self._last_words.decode(errors="replace").split("\n")
        words = next((line.strip() for line in reversed(lines) if line.strip()), "it left no message")
        return WorkerDied(
            f"{name} {how}: {words.removesuffix('.')}.", hint="`mlxm doctor` checks this machine.", retry_after_s=1.0
        )

    async def _keep_stderr(self) -> None:
        """Hold the last words for `death`; a full pipe would block the child."""
        stderr = self._process.stderr
        if stderr is None:
            return
        line = b""
        while chunk := await stderr.read(LAST_WORDS_BYTES):
            self._last_words = (self._last_words + chunk)[-LAST_WORDS_BYTES:]
            *lines, line = (line + chunk).split(b"\n")
            self._tell(lines)
            line = line[:_LINE_BYTES]
        self._tell([line])

    def _tell(self, lines: list[bytes]) -> None:
        """Pass on what says something."""
        for line in lines:
            words = line[:_LINE_BYTES].decode(errors="replace").rstrip()
            if words and self._on_words is not None:
                self._on_words(words)


def _could_not_start(module: str, error: OSError) -> InternalError:
    return InternalError(f"Could not start {module}: {error.strerror}.")
