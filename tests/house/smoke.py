"""Uses an installed wheel as a stranger would: python -I smoke.py WHEEL, run in an empty folder.

Only the standard library and the installed mlxm are at hand.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlxm

BOUND_S = 120
MLXM = str(Path(sys.executable).with_name("mlxm"))


def check(condition: object, complaint: str) -> None:
    """End the program with a complaint when something is not as it should be."""
    if not condition:
        sys.exit(f"smoke: {complaint}")


def check_contents(wheel: Path) -> None:
    """The wheel has all that runs, its licence and its types, and nothing else."""
    names = zipfile.ZipFile(wheel).namelist()
    check("mlxm/py.typed" in names, "py.typed is missing")
    check("mlxm/store/migrations.py" in names, "the migrations are missing")
    check(any(name.endswith(".dist-info/licenses/LICENSE") for name in names), "the licence is missing")
    strangers = {name.split("/")[0] for name in names} - {"mlxm", f"mlxm-{version('mlxm')}.dist-info"}
    check(not strangers, f"{sorted(strangers)} do not belong into the wheel")


def check_origin() -> None:
    """What is imported is what was installed."""
    origin = Path(mlxm.__file__)
    check(origin.is_relative_to(sys.prefix), f"mlxm was imported from {origin}")
    done = subprocess.run([MLXM, "--version"], capture_output=True, text=True, check=True, timeout=BOUND_S)
    check(done.stdout == f"mlxm {version('mlxm')}\n", f"--version printed {done.stdout!r}")


def check_serving(home: Path) -> None:
    """`mlxm serve` in an empty home, with no network, answers a chat and ends when told to."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLXM_")}
    environment |= {"HOME": str(home), "HF_HUB_OFFLINE": "1", "HTTP_PROXY": "", "HTTPS_PROXY": ""}
    command = [MLXM, "serve", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            words = server.stdout.readline().split() if server.stdout is not None else []
            check(words[:4] == ["mlxm", "is", "ready", "at"], f"serve announced {words}")
            answer = ask(words[4])
            check(answer["choices"][0]["message"]["content"], f"the answer is empty: {answer}")
            check(answer["usage"]["completion_tokens"] == 5, f"asked for 5 tokens, got {answer['usage']}")
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(BOUND_S)
    check(code == 0, f"serve ended with {code}")


def ask(url: str) -> dict[str, Any]:
    """One chat completion by plain HTTP."""
    body = {"model": "mlxm/tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=BOUND_S) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def main(wheel: str) -> None:
    """Check everything."""
    check_contents(Path(wheel))
    check_origin()
    with tempfile.TemporaryDirectory(prefix="mlxm-smoke-") as home:
        check_serving(Path(home))
    sys.stdout.write("smoke: the wheel works.\n")


if __name__ == "__main__":
    main(sys.argv[1])
