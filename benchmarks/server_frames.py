"""What one frame of a stream costs, and how much of that a faster encoder could save.

The encoder is timed alone, in this process; what a frame costs the whole server comes from its CPU time under load.
"""

from __future__ import annotations

import time
from statistics import median

from benchmarks.report import Value
from mlxm.types import TextDelta
from mlxm.wire.openai_chat_answers import KIND, ChunkWriter
from mlxm.wire.openai_usage import Heading

_NUM_FRAMES = 20_000
_NUM_ROUNDS = 5
_WORTH_ITS_BUILD = 0.02
"""A second language in the build is worth no less than this share of all CPU time."""


def encoder_us() -> float:
    """Microseconds of CPU time from an event to its frame's bytes."""
    write = ChunkWriter(Heading.of(KIND, "f" * 32, "mlxm/bench", 1_700_000_000), include_usage=True).write
    events = [TextDelta(choice=0, text=f" w{number}", token_ids=(number,)) for number in range(_NUM_FRAMES)]
    rounds: list[float] = []
    for _ in range(_NUM_ROUNDS):
        began_s = time.process_time()
        for event in events:
            write(event)
        rounds.append((time.process_time() - began_s) / _NUM_FRAMES * 1e6)
    return median(rounds)


def frame_row(server_s: float, whole_s: float, num_frames: int) -> dict[str, Value]:
    """The row of the report: the verdict is on an encoder that costs nothing at all, which no language can beat."""
    encoding = encoder_us()
    of_server = encoding * num_frames / 1e6 / server_s
    of_whole = encoding * num_frames / 1e6 / whole_s
    verdict = "worth trying" if of_whole >= _WORTH_ITS_BUILD else "not worth it"
    return {
        "case": "sse_frame",
        "encode_us": round(encoding, 2),
        "server_us": round(server_s / num_frames * 1e6, 1),
        "num_frames": num_frames,
        "rust_encoder": (
            f"{verdict}: if it took no time at all, it would save {of_server:.1%} of the server process "
            f"and {of_whole:.2%} of all CPU time"
        ),
    }
