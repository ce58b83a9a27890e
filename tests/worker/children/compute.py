"""A worker in the middle of one long computation, which no frame can interrupt."""

import argparse
import os
import socket

from mlxm import __version__
from mlxm.device.blas import open_blas
from mlxm.frames import PROTOCOL, Hello
from mlxm.worker.link import Link

parser = argparse.ArgumentParser()
parser.add_argument("--fd", type=int)
link = Link(socket.socket(fileno=parser.parse_args().fd))
open_blas(num_threads=1)

import mlx.core as mx  # noqa: E402  (after the BLAS)

matrix = mx.random.normal((2048, 2048))
product = matrix
for _ in range(2000):
    product = matrix @ product
link.send(Hello(protocol=PROTOCOL, version=__version__, pid=os.getpid()))
mx.eval(product)
