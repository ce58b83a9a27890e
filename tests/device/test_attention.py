import importlib
import random

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import base

from mlxm.device.attention import Exponential, Hook, Tile, attend_rows, attend_tiles, exp2_difference, install_hook
from mlxm.device.kv_store import LayerPool, LayerShape
from mlxm.device.layout import tile
from mlxm.device.paged import Batch, _span
from mlxm.engine.plan import Row

HEADS, KV_HEADS, DIM, VALUE_DIM = 6, 2, 8, 12
SCALE = 0.3
EXPONENTIALS = [Exponential(exp2_difference, 1.4426950408889634), Exponential(lambda x, top: mx.exp(x - top), 1.0)]


def filled_pool(num_blocks: int) -> LayerPool:
    """A pool full of random numbers."""
    shape = LayerShape(heads=KV_HEADS, key_dim=DIM, value_dim=VALUE_DIM, window=None, dtype=mx.float32)
    pool = LayerPool(shape, num_blocks)
    pool.keys = mx.random.normal(pool.keys.shape)
    pool.values = mx.random.normal(pool.values.shape)
    return pool


def of_sequence(blocks: mx.array, table: list[int], num_tokens: int) -> np.ndarray:
    """[heads, tokens, dim] of one sequence."""
    numbers = np.array(blocks).reshape(-1, KV_HEADS, 32, blocks.shape[-1])[table]
    return numbers.transpose(1, 0, 2, 3).reshape(KV_HEADS, -1, blocks.shape[-1])[:, :num_tokens]


def attend_slowly(
    query: np.ndarray, keys: np.ndarray, values: np.ndarray, window: int | None, sinks: np.ndarray | None
) -> np.ndarray:
    """Attention of one query [heads, dim] at the last of the tokens, in double precision."""
    first = 0 if window is None else max(0, keys.shape[1] - window)
    out = []
    for head in range(HEADS):
        scores = SCALE * keys[head // (HEADS // KV_HEADS), first:].astype(np.float64) @ query[head]
        top = scores.max() if sinks is None else max(scores.max(), sinks[head])
        weights = np.exp(scores - top)
        total = weights.sum() + (0 if sinks is None else np.exp(sinks[head] - top))
        out.append(weights @ values[head // (HEADS // KV_HEADS), first:] / total)
    return np.stack(out)


def test_the_polynomial_is_the_exponential() -> None:
    """To a few units in the last place, and never zero, infinite or negative far below."""
    x = mx.array(np.linspace(-120, 0, 100_001, dtype=np.float32))
    found = np.array(exp2_difference(x, mx.array(0.0)))
    assert np.abs(found / np.exp2(np.array(x, dtype=np.float64)) - 1).max() < 3e-7
    assert exp2_difference(mx.array([-1e30, -127.0, 3.0]), mx.array(3.0)).tolist() == [2**-126, 2**-126, 1.0]


@pytest.mark.parametrize("exp", EXPONENTIALS, ids=["polynomial", "mlx"])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("window", [None, 1, 32, 45])
def test_rows_attend_to_their_own_blocks(exp: Exponential, window: int | None, has_sinks: bool) -> None:  # noqa: FBT001
    """Of any length, wherever those lie, as far as the window reaches."""
    mx.random.seed(1)
    pool = filled_pool(40)
    free = list(range(1, 40))
    random.Random(1).shuffle(free)
    positions = [0, 30, 31, 32, 63, 64, 200]
    tables = [[free.pop() for _ in range(position // 32 + 1)] for position in positions]
    queries = mx.random.normal((len(positions), HEADS, DIM))
    sinks = mx.random.normal((HEADS,)) * 3 if has_sinks else None
    rows = [
        Row(sequence=place, position=position, token=0, table=table)
        for place, (position, table) in enumerate(zip(positions, tables, strict=True))
    ]
    pairs = Batch(rows, ()).pairs(KV_HEADS, window)
    found = attend_rows(queries, pool, pairs, scale=SCALE, sinks=sinks, exp=exp)
    for place, (position, table) in enumerate(zip(positions, tables, strict=True)):
        keys = of_sequence(pool.keys, table, position + 1)
        values = of_sequence(pool.values, table, position + 1)
        expected = attend_slowly(
            np.array(queries[place]), keys, values, window, None if sinks is None else np.array(sinks)
        )
        assert np.abs(expected - np.array(found[place])).max() < 2e-6


@pytest.mark.parametrize("num_strangers", [0, 3])
def test_a_shared_beginning_is_read_once_for_all(num_strangers: int) -> None:
    """The numbers are the same as when every row reads it for itself, also beside rows that do not share it."""
    mx.random.seed(2)
    pool = filled_pool(90)
    shared, other = list(range(10, 19)), list(range(20, 28))
    groups = [(shared, 5), (other, 4)] if num_strangers else [(shared, 5)]
    tables = [[*run, 30 + 10 * place + number] for place, (run, size) in enumerate(groups) for number in range(size)]
    tables += [[50 + stranger] for stranger in range(num_strangers)]
    random.Random(3).shuffle(tables)
    rows = [
        Row(sequence=place, position=32 * len(table) - 1 - place, token=0, table=table)
        for place, table in enumerate(tables)
    ]
    queries = mx.random.normal((len(rows), HEADS, DIM))
    sinks = mx.random.normal((HEADS,))
    exp = EXPONENTIALS[0]
    together = Batch(rows, ()).pairs(KV_HEADS, None)
    assert len(together.shared) == len(groups)
    found = attend_rows(queries, pool, together, scale=SCALE, sinks=sinks, exp=exp)
    for place, row in enumerate(rows):
        alone = Batch([row], ()).pairs(KV_HEADS, None)
        expected = attend_rows(queries[place : place + 1], pool, alone, scale=SCALE, sinks=sinks, exp=exp)
        assert mx.abs(expected[0] - found[place]).max().item() < 2e-6


@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("window", [None, 1, 40])
@pytest.mark.parametrize(("start", "length"), [(0, 1), (0, 300), (77, 200), (1000, 33)])
def test_a_chunk_attends_to_what_came_before(
    start: int,
    length: int,
    window: int | None,
    has_sinks: bool,  # noqa: FBT001
) -> None:
    """As mlx's own attention does with a mask, whatever the tiles."""
    mx.random.seed(4)
    num_keys = start + length
    queries = mx.random.normal((HEADS, length, DIM))
    keys, values = mx.random.normal((KV_HEADS, num_keys, DIM)), mx.random.normal((KV_HEADS, num_keys, DIM))
    sinks = mx.random.normal((HEADS,)) if has_sinks else None
    tilings = tile(start=start, length=length, first_key=0, window=window, num_heads=HEADS)
    tiles = [
        Tile(each.start, each.stop, tuple(_span(*span, HEADS // KV_HEADS) for span in each.spans)) for each in tilings
    ]
    found = attend_tiles(queries, keys, values, tiles, scale=SCALE, sinks=sinks, exp=EXPONENTIALS[0])
    mask = base.create_causal_mask(length, start, window_size=window)
    expected = mx.fast.scaled_dot_product_attention(
        queries[None], keys[None], values[None], scale=SCALE, mask=mask, sinks=sinks
    )[0]
    assert mx.abs(expected - found).max().item() < 5e-6


def test_what_is_no_handle_goes_to_mlx_lm() -> None:
    """Also through the names that model modules have imported; installing again changes nothing."""
    llama = importlib.import_module("mlx_lm.models.llama")
    install_hook()
    hook = base.scaled_dot_product_attention
    install_hook()
    assert isinstance(hook, Hook)
    assert base.scaled_dot_product_attention is hook
    assert llama.scaled_dot_product_attention is hook
    assert not isinstance(hook.original, Hook)
    queries, keys = mx.random.normal((1, 4, 3, 8)), mx.random.normal((1, 2, 5, 8))
    expected = mx.fast.scaled_dot_product_attention(queries, keys, keys, scale=SCALE, mask="causal")
    assert mx.array_equal(expected, hook(queries, keys, keys, None, SCALE, "causal"))


def test_the_hook_reaches_models_that_were_imported_since() -> None:
    """Their module has the hook already when base has it."""
    install_hook()
    module = importlib.import_module("mlx_lm.models.helium")
    install_hook()
    assert module.scaled_dot_product_attention is base.scaled_dot_product_attention
