import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

CHILDREN = Path(__file__).parent / "children"
PARENT = """
import asyncio, sys
from pathlib import Path
from mlxm.frames import FromWorker, Generate
from mlxm.child import Child
from mlxm.pool.worker import Worker, WorkerOptions

async def compute():
    child = await Child.start("compute", FromWorker)
    print(child.pid, flush=True)
    await asyncio.sleep(60)

async def generate(folder):
    worker = await Worker.start("tiny", WorkerOptions())
    await worker.load(Path(folder))
    request = Generate(request_id="a", prompt_ids=(300,) * 4000, max_tokens=4000)
    async for event in worker.generate(request):
        print(worker.pid, flush=True)

async def load(folder):
    worker = await Worker.start("tiny", WorkerOptions())
    loading = asyncio.create_task(worker.load(Path(folder)))
    await asyncio.sleep(0.3)
    print(worker.pid, flush=True)
    await loading

asyncio.run({"compute": lambda _: compute(), "generate": generate, "load": load}[sys.argv[1]](sys.argv[2]))
"""


@pytest.mark.parametrize("what", ["compute", "generate", "load"])
def test_a_worker_does_not_outlive_its_parent(tiny_folder: Path, what: str) -> None:
    """Killed without a chance to say goodbye, it takes its worker along within a second, whatever that one does."""
    environ = os.environ | {"PYTHONPATH": str(CHILDREN)}
    command = [sys.executable, "-c", PARENT, what, str(tiny_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        assert worker.is_running()
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 1.0
        with contextlib.suppress(psutil.NoSuchProcess):
            while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline, "the worker is still there"
                time.sleep(0.01)
