from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil
import pytest

from mlxm.child import Child
from mlxm.errors import (
    Draining,
    InternalError,
    InvalidRequest,
    ModelBroken,
    Overloaded,
    TimedOut,
    UnsupportedParameter,
    WorkerDied,
)
from mlxm.frames import FromPrep, Render, Tokens
from mlxm.pool import prep as prep_module
from mlxm.pool.prep import Prep, PrepLimits, _Process
from mlxm.tiny.families import FAMILIES
from mlxm.tiny.tokenizer import write_tokenizer
from mlxm.types import ChatRequest, Message, TextPart, Thinking, Tool, ToolChoice

T = TypeVar("T")
Model = Callable[..., Path]

MIB = 1024 * 1024
LIMITS = PrepLimits(timeout_s=2.0, memory_bytes=256 * MIB)
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HUGE = "{{ 'a' * 10 ** 9 }}"


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one turn."""
    return (Message(role="user", content=(TextPart(text),)),)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """Write a model folder with a template of one's own."""

    def write(name: str = "good", template: str | None = None) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        family = FAMILIES["chatml"]
        if template is not None:
            family = msgspec.structs.replace(family, chat_template=template)
        write_tokenizer(folder, family, context=512)
        return folder

    return write


def with_prep(work: Callable[[Prep], Awaitable[T]], limits: PrepLimits = LIMITS) -> T:
    """Run `work` with a started Prep and close it; no test takes longer than a minute."""

    async def run() -> T:
        prep = Prep(limits)
        await prep.start()
        try:
            async with asyncio.timeout(60):
                return await work(prep)
        finally:
            await prep.close()

    return asyncio.run(run())


async def child_pid(prep: Prep) -> int:
    """The pid of the process, once there is one."""
    while prep._process is None:  # noqa: ASYNC110 - what a test looks for from outside announces itself to nobody
        await asyncio.sleep(0.01)
    return prep._process._child.pid


async def until_busy(prep: Prep) -> None:
    """Wait until the process has been given a job."""
    while prep._process is not None:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0)


def test_a_conversation_becomes_ids(model: Model) -> None:
    """The same ones each time, and others for another conversation."""
    good = model()

    async def work(prep: Prep) -> None:
        first = await prep.render(good, user("hello"))
        assert first == await prep.render(good, user("hello"))
        assert first != await prep.render(good, user("hello you"))

    with_prep(work)


def test_a_request_goes_into_its_prompt_with_all_that_belongs_there(model: Model) -> None:
    """Its tools, unless they are not to be called, its options and its wishes; what has no place there is named."""
    source = (
        "{{ mood }}{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{% for m in messages %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    good = model(template=source)
    request = ChatRequest(
        request_id="r",
        model="m",
        messages=(*user("hello"), Message(role="assistant", content=(TextPart("I am "),))),
        tools=(Tool(name="roll"),),
        thinking=Thinking(effort="low"),
        template_options='{"mood": "glad "}',
        continues_final=True,
    )
    text = "<|im_start|>user\nhello<|im_end|><|im_start|>assistant\nI am "

    async def work(prep: Prep) -> None:
        prompt = await prep.render_chat(good, request)
        assert prompt.ending == f"glad roll {text}"
        assert prompt.unused == ("thinking.effort",)
        assert await prep.decode(good, prompt.ids) == prompt.ending
        silent = msgspec.structs.replace(request, tool_choice=ToolChoice(mode="none"))
        assert (await prep.render_chat(good, silent)).ending == f"glad {text}"
        strange = msgspec.structs.replace(request, template_options='{"colour": 1}')
        with pytest.raises(UnsupportedParameter, match="does not read colour"):
            await prep.render_chat(good, strange)

    with_prep(work)


def test_start_does_not_wait_for_the_process() -> None:
    """The server's own start must not."""

    async def work(prep: Prep) -> None:
        assert prep._process is None

    with_prep(work)


def test_fifty_at_once_each_get_their_own(model: Model) -> None:
    """They wait in line and none gets another's answer."""
    good = model()

    async def work(prep: Prep) -> None:
        texts = [f"number {number} of fifty" for number in range(50)]
        together = await asyncio.gather(*(prep.render(good, user(text)) for text in texts))
        assert [await prep.render(good, user(text)) for text in texts] == together
        assert len(set(together)) == 50

    with_prep(work)


def test_an_endless_template_costs_its_own_request_only(model: Model) -> None:
    """It is refused after its time; what waits behind it is answered by a new process."""
    good, endless = model(), model("endless", ENDLESS)

    async def work(prep: Prep) -> None:
        expected = await prep.render(good, user("x"))
        first = await child_pid(prep)
        began = time.monotonic()
        bomb = asyncio.create_task(prep.render(endless, user("x")))
        behind = [asyncio.create_task(prep.render(good, user("x"))) for _ in range(3)]
        with pytest.raises(InvalidRequest, match="did not finish within 1 s"):
            await bomb
        assert 0.9 < time.monotonic() - began < 8
        assert [expected] * 3 == await asyncio.gather(*behind)
        assert first != await child_pid(prep)
        assert not psutil.pid_exists(first)

    with_prep(work, PrepLimits(timeout_s=1.0))


def test_a_new_process_is_there_before_the_next_job_asks_for_it(model: Model) -> None:
    """Nobody else waits for what a bomb has cost."""
    endless = model("endless", ENDLESS)

    async def work(prep: Prep) -> None:
        with pytest.raises(InvalidRequest):
            await prep.render(endless, user("x"))
        assert psutil.pid_exists(await child_pid(prep))

    with_prep(work, PrepLimits(timeout_s=0.3))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel refuses memory on Linux only")
def test_a_template_that_eats_memory_is_refused_and_the_process_lives(model: Model) -> None:
    """The kernel says no before anything is lost."""
    good, huge = model(), model("huge", HUGE)

    async def work(prep: Prep) -> None:
        await prep.render(good, user("x"))
        before = await child_pid(prep)
        with pytest.raises(InvalidRequest, match="uses too much memory"):
            await prep.render(huge, user("x"))
        await prep.render(good, user("x"))
        assert before == await child_pid(prep)

    with_prep(work)


def test_a_process_that_died_of_memory_is_replaced_and_the_request_refused(model: Model) -> None:
    """It is not tried again: the second time would be the same."""
    good = model()

    async def work(prep: Prep) -> None:
        expected = await prep.render(good, user("x"))
        before = await child_pid(prep)
        with pytest.raises(InvalidRequest, match="uses too much memory: more than 16 MiB"):
            await prep.render(good, user("word " * 400_000))
        assert expected == await prep.render(good, user("x"))
        assert before != await child_pid(prep)

    with_prep(work, PrepLimits(memory_bytes=16 * MIB, timeout_s=20))


def test_a_tokenizer_that_takes_too_much_memory_is_a_broken_model(model: Model, tmp_path: Path) -> None:
    """A process that ends so before the job's own time has begun was reading files."""
    (tmp_path / "dying_prep.py").write_text(
        "import os, socket, sys\n"
        "from mlxm.frames import PROTOCOL, Hello, encode\n"
        "from mlxm.prep.limits import EXIT_OVER_MEMORY\n"
        "sock = socket.socket(fileno=int(sys.argv[2]))\n"
        "sock.sendall(encode(Hello(protocol=PROTOCOL, version='1', pid=1)))\n"
        "sock.recv(1)\n"
        "os._exit(EXIT_OVER_MEMORY)\n"
    )

    async def run() -> None:
        child = await Child.start("dying_prep", FromPrep, environ=os.environ | {"PYTHONPATH": str(tmp_path)})
        with pytest.raises(ModelBroken, match="does not fit into memory"):
            await _Process(child, LIMITS).ask(Render(job=1, path=str(model()), messages=user("x")))
        assert not child.is_running

    asyncio.run(run())


def test_a_broken_tokenizer_is_named_and_does_no_harm(model: Model) -> None:
    """Typed, and the next model works."""
    good, broken = model(), model("broken")
    (broken / "tokenizer.json").write_bytes(b"\xff{")

    async def work(prep: Prep) -> None:
        with pytest.raises(ModelBroken, match=r"tokenizer\.json of this model is broken"):
            await prep.render(broken, user("x"))
        assert (await prep.render(good, user("x"))).ids

    with_prep(work)


def test_what_no_frame_can_carry_is_refused_and_does_no_harm(model: Model, tmp_path: Path) -> None:
    """Neither half a character in a message nor a folder whose name is no text stops what comes after."""
    good = model()

    async def work(prep: Prep) -> None:
        for folder, text in ((good, "\ud800"), (tmp_path / "name\udcff", "hello")):
            with pytest.raises(InvalidRequest, match="Unicode"):
                await prep.render(folder, user(text))
        assert (await prep.render(good, user("hello"))).ids

    with_prep(work)


def test_breaking_out_makes_nothing_and_does_no_harm(model: Model, tmp_path: Path) -> None:
    """The file that the template tries to make is never there."""
    marker = tmp_path / "marker"
    evil = model("evil", "{{ lipsum.__globals__['os'].system('touch " + str(marker) + "') }}")
    good = model()

    async def work(prep: Prep) -> None:
        with pytest.raises(InvalidRequest, match="unsafe"):
            await prep.render(evil, user("x"))
        assert (await prep.render(good, user("x"))).ids

    with_prep(work)
    assert not marker.exists()


def test_a_process_killed_in_the_middle_of_a_job_is_replaced_and_the_job_done(model: Model) -> None:
    """The caller does not notice."""
    good, slow = model(), model("slow", "{% for n in range(2500) %}{% for m in range(999) %}{% endfor %}{% endfor %}ok")

    async def work(prep: Prep) -> None:
        expected = await prep.render(slow, user("x"))
        killed = await child_pid(prep)
        job = asyncio.create_task(prep.render(slow, user("x")))
        behind = asyncio.create_task(prep.render(good, user("x")))
        await until_busy(prep)
        os.kill(killed, signal.SIGKILL)
        assert expected == await job
        assert (await behind).ids
        assert killed != await child_pid(prep)

    with_prep(work, PrepLimits(timeout_s=20))


def test_an_idle_process_that_was_killed_is_replaced(model: Model) -> None:
    """Nobody was waiting for it, so nothing is lost."""
    good = model()

    async def work(prep: Prep) -> None:
        expected = await prep.render(good, user("x"))
        os.kill(await child_pid(prep), signal.SIGKILL)
        assert expected == await prep.render(good, user("x"))

    with_prep(work)


def test_a_job_that_loses_two_processes_fails_and_the_next_one_works(model: Model) -> None:
    """A job that kills whoever does it must not do so forever."""
    good, endless = model(), model("endless", ENDLESS)

    async def work(prep: Prep) -> None:
        pids: set[int] = set()
        await prep.render(good, user("x"))
        job = asyncio.create_task(prep.render(endless, user("x")))
        while len(pids) < 2:
            for pid in children_of(os.getpid()) - pids:
                if prep._process is None and is_prep(pid):
                    os.kill(pid, signal.SIGKILL)
                    pids.add(pid)
            await asyncio.sleep(0.01)
        with pytest.raises(WorkerDied, match="was ended by SIGKILL"):
            await job
        assert (await prep.render(good, user("x"))).ids

    with_prep(work, PrepLimits(timeout_s=30))


def children_of(parent: int) -> set[int]:
    """The pids of a process's children."""
    return {child.pid for child in psutil.Process(parent).children()}


def is_prep(pid: int) -> bool:
    """Whether the pid is that of a prep process."""
    try:
        return "mlxm.prep" in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def test_a_slow_tokenizer_is_not_waited_for_longer_than_its_time(model: Model) -> None:
    """Reading it has a time of its own, and is no fault of the template."""
    good = model()

    async def work(prep: Prep) -> None:
        with pytest.raises(TimedOut, match="tokenizer was not read within"):
            await prep.render(good, user("x"))

    with_prep(work, PrepLimits(load_timeout_s=0.0001))


def test_a_caller_that_gives_up_disturbs_nobody(model: Model) -> None:
    """Whether its job waits or is being done."""
    good, endless = model(), model("endless", ENDLESS)

    async def work(prep: Prep) -> None:
        expected = await prep.render(good, user("x"))
        running = asyncio.create_task(prep.render(endless, user("x")))
        waiting = asyncio.create_task(prep.render(good, user("y")))
        behind = asyncio.create_task(prep.render(good, user("x")))
        await until_busy(prep)
        running.cancel()
        waiting.cancel()
        gone = await asyncio.gather(running, waiting, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in gone)
        assert expected == await behind

    with_prep(work, PrepLimits(timeout_s=1.0))


def test_a_full_line_is_refused_at_once(model: Model) -> None:
    """Waiting prompts hold memory: beyond a number, callers are told to come again."""
    good, endless = model(), model("endless", ENDLESS)

    async def work(prep: Prep) -> None:
        await prep.render(good, user("x"))
        held = [asyncio.create_task(prep.render(endless, user("x")))]
        await until_busy(prep)
        held += [asyncio.create_task(prep.render(good, user("x"))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await prep.render(good, user("x"))
        assert caught.value.retry_after_s == 0.5
        assert [InvalidRequest, Tokens, Tokens] == [
            type(outcome) for outcome in await asyncio.gather(*held, return_exceptions=True)
        ]

    with_prep(work, PrepLimits(timeout_s=0.5, max_waiting=2))


def test_a_process_that_cannot_start_fails_its_job_and_not_the_next(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When Python is there again, prompts are prepared again."""
    good = model()

    async def work(prep: Prep) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/absent/python")
            with pytest.raises(InternalError, match=r"Could not start mlxm\.prep: No such file"):
                await prep.render(good, user("x"))
        assert (await prep.render(good, user("x"))).ids

    with_prep(work)


def test_it_is_ready_once_its_process_has_said_hello(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot start is told once, with its reason, and tried again without anybody asking."""
    good = model()
    deaths: list[str] = []

    async def run() -> None:
        prep = Prep(LIMITS, lambda error: deaths.append(error.message))
        assert prep.ready() == "The process that prepares prompts is starting."
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/absent/python")
            patch.setattr(prep_module, "_RETRY_S", 0.01)
            await prep.start()
            await prep.tried()
            await asyncio.sleep(0.1)
            assert deaths == ["Could not start mlxm.prep: No such file or directory."]
            assert prep.ready() == deaths[0]
        async with asyncio.timeout(60):
            while prep.ready() is not None:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
            os.kill(await child_pid(prep), signal.SIGKILL)
            assert (await prep.render(good, user("x"))).ids
        assert deaths[1:] == ["The process that prepares prompts was ended by SIGKILL: it left no message."]
        await prep.close()

    asyncio.run(run())


def test_closing_fails_what_has_no_answer_and_ends_the_process(model: Model) -> None:
    """Running or waiting, every caller hears of it, and nothing stays behind."""
    good, endless = model(), model("endless", ENDLESS)

    async def run() -> None:
        prep = Prep(LIMITS)
        await prep.start()
        await prep.start()
        await prep.render(good, user("x"))
        pid = await child_pid(prep)
        jobs = [asyncio.create_task(prep.render(folder, user("x"))) for folder in (endless, good)]
        await until_busy(prep)
        await prep.close()
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        assert [Draining, Draining] == [type(outcome) for outcome in outcomes]
        assert not psutil.pid_exists(pid)
        with pytest.raises(Draining):
            await prep.render(good, user("x"))
        await prep.close()

    asyncio.run(run())


def test_closing_an_idle_one_lets_the_process_leave_by_itself(model: Model) -> None:
    """It is asked to, and is gone at once."""
    good = model()

    async def run() -> None:
        prep = Prep(LIMITS)
        await prep.close()
        await prep.start()
        await prep.render(good, user("x"))
        process = prep._process
        assert process is not None
        await prep.close()
        assert process._child.exit_code == 0

    asyncio.run(run())


def test_a_parent_that_is_killed_takes_the_process_with_it(model: Model) -> None:
    """Even in the middle of a template that would go on for minutes."""
    script = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from mlxm.pool.prep import Prep, PrepLimits\nfrom mlxm.types import Message, TextPart\n"
        "async def main():\n"
        "    prep = Prep(PrepLimits(timeout_s=60))\n"
        "    await prep.start()\n"
        "    while prep._process is None: await asyncio.sleep(0.01)\n"
        "    pid = prep._process._child.pid\n"
        "    message = Message(role='user', content=(TextPart('x'),))\n"
        "    job = asyncio.create_task(prep.render(Path(sys.argv[1]), [message]))\n"
        "    await asyncio.sleep(0.3)\n"
        "    print(pid, flush=True)\n"
        "    await job\n"
        "asyncio.run(main())\n"
    )
    arguments = [sys.executable, "-c", script, str(model("endless", ENDLESS))]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
        parent.wait(10)
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    """Whether the pid is that of a process that has not ended; nobody may have collected it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_server_side_loads_nothing_heavy() -> None:
    """Templates and tokenizers stay in their own process."""
    script = (
        "import sys, mlxm.pool.prep\n"
        "print(sorted({'jinja2', 'tokenizers', 'transformers', 'mlx', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]"
