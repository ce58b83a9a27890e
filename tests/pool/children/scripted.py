"""A child that does what its arguments say, in order, before it echoes Cancel frames until Shutdown."""

import argparse
import os
import signal
import socket
import sys
import time

from mlxm.frames import PROTOCOL, Cancel, Decoder, Delta, Hello, Shutdown, Step, ToWorker, encode

parser = argparse.ArgumentParser()
parser.add_argument("--fd", type=int)
parser.add_argument("acts", nargs="*")
options = parser.parse_args()
sock = socket.socket(fileno=options.fd)


def say_hello(protocol: str = PROTOCOL) -> None:
    """The first frame."""
    sock.sendall(encode(Hello(protocol=protocol, version="9.9", pid=os.getpid())))


ACTS = {
    "hello": say_hello,
    "other": lambda: say_hello("another"),
    "garbage": lambda: sock.sendall(b"\x00\x00\x00\x01\xc1"),
    "delta": lambda: sock.sendall(encode(Step((Delta(request_id="", choice=0, seq=0, text="", token_ids=()),)))),
    "words": lambda: sys.exit("first line\n  last words  \n\n"),
    "flood": lambda: sys.stderr.write("x" * 1_000_000 + "\nlast words\n"),
    "abort": lambda: os.kill(os.getpid(), signal.SIGABRT),
    "silence": lambda: time.sleep(60),
    "deaf": lambda: time.sleep(60),
    "leave": lambda: sys.exit(3),
}
for act in options.acts:
    ACTS[act]()
decoder = Decoder(ToWorker)
while not isinstance(frame := decoder.read_blocking(sock), Shutdown | None):
    if isinstance(frame, Cancel):
        sock.sendall(encode(frame))
