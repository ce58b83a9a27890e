"""Entry of the prep process: `python -m mlxm.prep --fd N --memory-bytes M`, started by the pool."""

from __future__ import annotations

import argparse
import os
import resource
import socket

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one text at a time: threads would only add stacks

from mlxm.prep.jobs import serve


def main() -> None:
    """Serve jobs on the inherited socket until the parent is gone."""
    parser = argparse.ArgumentParser(prog="mlxm.prep")
    parser.add_argument("--fd", type=int, required=True, help="the inherited end of a socket pair")
    parser.add_argument("--memory-bytes", type=int, required=True, help="how far one job may grow the process")
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # a dump would hold people's prompts
    serve(socket.socket(fileno=arguments.fd), arguments.memory_bytes)


if __name__ == "__main__":
    main()
