from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxm.device.kv_store import read_shapes
from mlxm.device.rows import PaddedBatch, RowsLayer, RowsStore, _groups
from mlxm.engine.plan import Chunk
from mlxm.errors import InternalError
from tests.device.driver import LENGTHS, Player, answer_alone, make_runner, make_store, prompt, tiny

NUM_TOKENS = 20
ARCHITECTURES = [
    ("llama", 4),
    ("phi", 4),
    ("stablelm", 4),
    ("gemma2", 5),
    ("deepseek_v3", 4),
    ("llama_sliding", 4),
    ("gemma3_text", 4),
    ("gemma3n", 4),
    ("gpt_oss", 4),
]
"""Plain, computing with their keys, attention of their own, latent vectors, windows, borrowed keys, sinks."""


@pytest.mark.parametrize(("architecture", "mask_axes"), ARCHITECTURES)
def test_tokens_are_those_of_mlx_lm(architecture: str, mask_axes: int, folder: Path) -> None:
    """For prompts around the edges of blocks, in chunks of odd sizes, joining and leaving each other."""
    model = tiny(architecture, folder).model
    player = Player(make_runner(make_store(partial(RowsStore, mask_axes=mask_axes), model)))
    playing = []
    for length in LENGTHS:
        playing.append(player.begin(prompt(length), NUM_TOKENS))
        player.step()
    player.finish((16, 17, 18, 60))
    for length, each in zip(LENGTHS, playing, strict=True):
        assert answer_alone(model, prompt(length), NUM_TOKENS) == each.answer


def test_prefixes_and_copies_work_as_in_any_store(folder: Path) -> None:
    """Two sequences over the same first block, one of which writes to a copy of the second."""
    model = tiny("gemma2", folder).model
    player = Player(make_runner(make_store(partial(RowsStore, mask_axes=5), model)))
    parent = player.begin(prompt(50), NUM_TOKENS)
    while parent.done < 49:
        player.step()
    other = [*prompt(50)[:49], 77]
    (copy,) = player.blocks(1)
    fork = player.begin(other, NUM_TOKENS, table=[parent.table[0], copy, *player.blocks(32)], done=49)
    player.step(copies=((parent.table[1], copy),))
    player.finish()
    assert answer_alone(model, prompt(50), NUM_TOKENS) == parent.answer
    assert answer_alone(model, other, NUM_TOKENS) == fork.answer


def test_broken_numbers_stay_with_their_sequence(folder: Path) -> None:
    """Also among chunks that are padded to one length."""
    model = tiny("stablelm", folder).model
    embedding = model.model.embed_tokens
    kept = embedding.weight
    expected = [answer_alone(model, prompt(length), NUM_TOKENS) for length in (40, 44)]
    weight = np.array(kept)
    weight[1001] = np.nan
    embedding.weight = mx.array(weight)
    try:
        player = Player(make_runner(make_store(RowsStore, model)))
        broken = player.begin([*prompt(20), 1001, *prompt(20)], NUM_TOKENS)
        in_row = player.begin([*prompt(20), 1001], NUM_TOKENS)
        fine = [player.begin(prompt(length), NUM_TOKENS) for length in (40, 44)]
        player.finish((100,))
    finally:
        embedding.weight = kept
    assert broken.failed
    assert in_row.failed
    assert expected == [each.answer for each in fine]


def test_chunks_of_like_lengths_are_computed_together() -> None:
    """Padding adds a quarter at most."""
    lengths = [100, 10, 95, 11, 300, 12, 99]
    chunks = [Chunk(sequence=0, start=0, tokens=[1] * length, table=()) for length in lengths]
    groups = _groups(chunks)
    assert [[lengths[place] for place in group] for group in groups] == [[10, 11, 12], [95, 99, 100], [300]]
    assert _groups([]) == []


def test_padding_is_written_to_the_scratch_block() -> None:
    """The tokens themselves go where their tables say."""
    batch = PaddedBatch([[5], [7, 2]], np.array([3, 31]), np.array([1, 2]))
    assert batch.slots(1).tolist() == [[5 * 32 + 3], [4], [7 * 32 + 31], [2 * 32]]


def test_a_window_gathers_its_own_blocks_only() -> None:
    """Each row from the block in which its window begins."""
    batch = PaddedBatch([[1, 2, 3, 4], [5, 6]], np.array([100, 40]), np.array([1, 1]))
    assert batch.blocks(1, 16).tolist() == [[[3, 4]], [[5, 6]]] or batch.blocks(1, 16).shape[-1] <= 2
    seen = np.array(batch.mask(16, 16, 4))
    assert seen.sum(-1).reshape(-1).tolist() == [16, 16]


def test_keys_are_not_read_before_they_are_written(folder: Path) -> None:
    """Nor is a model believed whose last cache stays unused."""
    model = tiny("llama", folder).model
    store = RowsStore(model, read_shapes(model), 4)
    layer: RowsLayer = store._layers[0]
    with pytest.raises(InternalError, match="before they are written"):
        layer.keys_and_values()
    with pytest.raises(InternalError, match="does not use its last cache"):
        layer.are_finite(np.array([1]))


@pytest.mark.parametrize("architecture", ["llama", "gpt_oss"])
def test_a_step_copies_what_it_reads_and_no_pool(architecture: str, folder: Path) -> None:
    """The memory of a step is a small part of the pool: writes are made in place."""
    model = tiny(architecture, folder).model
    player = Player(make_runner(RowsStore(model, read_shapes(model), 4000)))
    for length in (40, 100, 300):
        player.begin(prompt(length), 30)
    while any(each.done < each.num_prompt for each in player.playing):
        player.step((512,))
    player.step()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(3):
        player.step()
    pool_bytes = 4000 * player.runner.facts.block_bytes
    assert mx.get_peak_memory() - before < pool_bytes / 25
