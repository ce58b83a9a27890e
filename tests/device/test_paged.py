from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxm.device.kv_store import read_shapes
from mlxm.device.paged import KIND, PagedStore
from mlxm.engine.plan import Chunk, Row
from mlxm.errors import InternalError
from tests.device.driver import LENGTHS, Player, answer_alone, make_runner, make_store, prompt, row_of, tiny

NUM_TOKENS = 20
ARCHITECTURES = [
    "llama",
    "qwen3",
    "mixtral",
    "gpt2",
    "llama_sliding",
    "gemma3_text",
    "gpt_oss",
    "gemma3n",
    "mimo_v2_flash",
]
"""Full attention, experts, learnt positions, windows, sinks, layers that look at another one's keys."""


@pytest.mark.parametrize("joins", [True, False], ids=["one forward", "two forwards"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_are_those_of_mlx_lm(architecture: str, joins: bool, folder: Path) -> None:  # noqa: FBT001
    """For prompts around the edges of blocks, in chunks of odd sizes, joining and leaving each other."""
    model = tiny(architecture, folder).model
    player = Player(make_runner(PagedStore(model, read_shapes(model), 120, joins=joins)))
    playing = []
    for length in LENGTHS:
        playing.append(player.begin(prompt(length), NUM_TOKENS - length % 7))
        player.step()
        player.step()
    player.finish()
    for length, each in zip(LENGTHS, playing, strict=True):
        assert answer_alone(model, prompt(length), NUM_TOKENS - length % 7) == each.answer


def test_prefix_blocks_are_shared(folder: Path) -> None:
    """Sequences that begin alike look at the same blocks, many of them at once, and each goes its own way."""
    model = tiny("llama", folder).model
    player = Player(make_runner(make_store(PagedStore, model)))
    prefix = prompt(320)
    first = player.begin([*prefix, 5], 4)
    player.finish()
    prompts = [[*prefix, *prompt(10 + number)] for number in range(6)]
    sharing = [
        player.begin(tokens, NUM_TOKENS, table=[*first.table[:10], *player.blocks(40)], done=320) for tokens in prompts
    ]
    player.finish()
    assert [answer_alone(model, tokens, NUM_TOKENS) for tokens in prompts] == [each.answer for each in sharing]


@pytest.mark.parametrize("architecture", ["llama", "gpt_oss"])
def test_a_copied_block_parts_from_its_source(architecture: str, folder: Path) -> None:
    """A fork writes to a copy made in the same step, and its parent's tokens stay what they are."""
    model = tiny(architecture, folder).model
    player = Player(make_runner(make_store(PagedStore, model)))
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


def test_several_rows_of_one_sequence_see_each_other(folder: Path) -> None:
    """Rows at consecutive positions give in one step what they give one after the other."""
    model = tiny("llama_sliding", folder).model
    store = make_store(PagedStore, model)
    tokens = prompt(45)
    table = [7, 3, 5]
    store.compute((), None, [Chunk(sequence=1, start=0, tokens=tokens[:30], table=table)])
    mx.eval(store.pools.arrays())
    rows = [Row(sequence=1, position=place, token=tokens[place], table=table) for place in range(30, 45)]
    logits = store.compute(rows, mx.array(tokens[30:]), ()).logits
    assert logits is not None
    found = mx.argmax(logits, axis=-1).tolist()
    assert [answer_alone(model, tokens[: place + 1], 1)[0] for place in range(30, 45)] == found


def test_wiped_blocks_are_zero(folder: Path) -> None:
    """In every layer, and no other block is."""
    model = tiny("llama", folder).model
    store = make_store(PagedStore, model)
    store.compute((), None, [Chunk(sequence=1, start=0, tokens=prompt(96), table=[2, 3, 4])])
    mx.eval(store.pools.arrays())
    store.pools.wipe([2, 4])
    sums = np.array(mx.abs(store.pools.layers[-1].key_blocks).sum((1, 2))).reshape(-1, 2).sum(1)
    assert [place for place, total in enumerate(sums) if total] == [3]


@pytest.mark.parametrize("architecture", ["llama", "gpt_oss"])
def test_broken_numbers_stay_with_their_sequence(architecture: str, folder: Path) -> None:
    """A token whose embedding is not finite fails its row or chunk; all others get the same tokens as before.

    Blocks that the broken sequence leaves behind do no harm to whoever gets them next.
    """
    model = tiny(architecture, folder).model
    broken_token = 1001
    embedding = model.model.embed_tokens
    kept = embedding.weight
    prompts = [prompt(20), prompt(70), prompt(33)]
    expected = [answer_alone(model, tokens, NUM_TOKENS) for tokens in prompts]
    weight = np.array(kept)
    weight[broken_token] = np.nan
    embedding.weight = mx.array(weight)
    try:
        player = Player(make_runner(make_store(PagedStore, model)))
        in_row = player.begin([*prompt(9), broken_token], NUM_TOKENS)
        in_chunk = player.begin([*prompt(40), broken_token, *prompt(12)], NUM_TOKENS)
        fine = [player.begin(tokens, NUM_TOKENS) for tokens in prompts[:2]]
        player.finish()
        heir = player.begin(prompts[2], NUM_TOKENS, table=[in_chunk.table[1], in_row.table[0]])
        player.finish()
    finally:
        embedding.weight = kept
    assert in_row.failed
    assert in_chunk.failed
    assert expected == [each.answer for each in (*fine, heir)]


def test_a_decode_step_copies_no_pool(folder: Path) -> None:
    """The memory of a step is a small part of the pool: writes are made in place."""
    model = tiny("llama", folder).model
    player = Player(make_runner(PagedStore(model, read_shapes(model), 4000)))
    for length in (40, 100, 500):
        player.begin(prompt(length), 30)
    while any(each.done < each.num_prompt for each in player.playing):
        player.step((512,))
    for _ in range(3):
        player.step()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(5):
        player.step()
    pool_bytes = 4000 * player.runner.facts.block_bytes
    assert mx.get_peak_memory() - before < pool_bytes / 50


def test_a_chunk_copies_no_pool(folder: Path) -> None:
    """Nor do a copied or a wiped block."""
    model = tiny("llama", folder).model
    player = Player(make_runner(PagedStore(model, read_shapes(model), 4000)))
    player.begin(prompt(200), 5)
    player.step((16,))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    player.step((16,), copies=((3, 5), (7, 6)), wipes=(8, 9))
    pool_bytes = 4000 * player.runner.facts.block_bytes
    assert mx.get_peak_memory() - before < pool_bytes / 20


def test_what_a_model_must_not_do_with_its_mask_is_refused(folder: Path) -> None:
    """Models that compute with their mask, or bring one of their own, are no candidates."""
    model = tiny("llama", folder).model
    store = PagedStore(model, read_shapes(model), 10)
    layer = store._layers[0]
    with pytest.raises(InternalError, match="works with its mask"):
        layer.make_mask(1, return_array=True)
    with pytest.raises(InternalError, match="a mask of its own"):
        layer.attend(mx.zeros((1, 4, 1, 16)), 1.0, mx.zeros((1, 1)), None)
    with pytest.raises(InternalError, match="does not use its last cache"):
        layer.finite_chunks(store._scope.batch)


def test_its_kind_says_how_it_reads(folder: Path) -> None:
    """So that people can be told."""
    model = tiny("llama", folder).model
    assert make_store(PagedStore, model, 4).kind == KIND


def test_a_row_depends_on_nobody(folder: Path) -> None:
    """Its logits are the same to rounding alone, among others, and beside chunks."""
    model = tiny("qwen3", folder).model
    store = make_store(PagedStore, model)
    player = Player(make_runner(store))
    playing = [player.begin(prompt(length), 5) for length in (20, 90, 33)]
    while any(each.done < each.num_prompt - 1 for each in playing):
        plan, _, chunked = player.plan((50,))
        store.compute((), None, plan.chunks)
        mx.eval(store.pools.arrays())
        for each, chunk in zip(chunked, plan.chunks, strict=True):
            each.done += len(chunk.tokens)
    rows = [row_of(each) for each in playing]
    tokens = mx.array([row.token for row in rows])
    chunk = Chunk(sequence=9, start=0, tokens=prompt(40), table=player.blocks(40))
    ways = [
        store.compute(rows, tokens, ()).logits,
        mx.concatenate([store.compute([row], mx.array([row.token]), ()).logits for row in rows]),
        store.compute(rows, tokens, [chunk]).logits,
    ]
    assert all(mx.abs(ways[0] - way).max().item() < 1e-4 for way in ways[1:])
