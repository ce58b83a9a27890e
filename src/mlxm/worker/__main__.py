"""`python -m mlxm.worker --fd N` runs a model for the process at the other end; `--probe` reports on the device.

Hello comes before anything heavy is imported, so that the parent knows at once that somebody is there.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys

import msgspec

from mlxm import __version__
from mlxm.frames import PROTOCOL, Hello
from mlxm.worker.link import Link

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""A model is loaded from its folder alone, whatever its configuration asks for."""


def main() -> int:
    """Do what the arguments say; the exit status."""
    arguments = _parser().parse_args()
    os.environ.update(_OFFLINE)
    if arguments.probe:
        return _print_probe(arguments)
    link = Link(socket.socket(fileno=arguments.fd))
    link.send(Hello(protocol=PROTOCOL, version=__version__, pid=os.getpid()))
    from mlxm.worker.bring_up import bring_up  # noqa: PLC0415  (hello first)

    service = bring_up(link, blas=arguments.blas, blas_threads=arguments.blas_threads)
    if service is not None:
        service.run()
    link.flush()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mlxm.worker", description=__doc__)
    role = parser.add_mutually_exclusive_group(required=True)
    role.add_argument("--fd", type=int, help="the socket inherited from the parent")
    role.add_argument("--probe", action="store_true", help="print one JSON object about the device, and leave")
    parser.add_argument("--blas", default="auto", help="auto, none, or the path of a library (Linux)")
    parser.add_argument("--blas-threads", type=int, help="how many threads the BLAS may use")
    return parser


def _print_probe(arguments: argparse.Namespace) -> int:
    from mlxm.device.probe import probe  # noqa: PLC0415  (a worker needs none of it)

    report = probe(arguments.blas, num_threads=arguments.blas_threads)
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
