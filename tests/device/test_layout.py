import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxm.device.layout import MIN_SHARED_BLOCKS, MIN_SHARERS, Places, find_runs, pair_up, tile
from mlxm.engine.plan import Chunk, Row

positions = st.integers(min_value=0, max_value=300)
windows = st.none() | st.integers(min_value=1, max_value=200)


@given(st.lists(positions, min_size=1, max_size=8), windows)
@settings(deadline=None, max_examples=60)
def test_a_row_looks_at_exactly_its_latest_tokens(where: list[int], window: int | None) -> None:
    """Every token of its window and none besides, each in the block that its table names."""
    tables = [np.arange(position // 32 + 1) + 100 * row for row, position in enumerate(where)]
    pairs = pair_up(tables, np.array(where), window)
    assert list(pairs.blocks) == sorted(pairs.blocks)
    seen: dict[int, set[int]] = {row: set() for row in range(len(where))}
    for row, block, bias in zip(pairs.rows, pairs.blocks, pairs.bias(), strict=True):
        assert block // 100 == row
        seen[row] |= {int(32 * (block % 100) + token) for token in range(32) if bias[token] == 0}
    for row, position in enumerate(where):
        first = 0 if window is None else max(0, position - window + 1)
        assert seen[row] == set(range(first, position + 1))


@given(
    st.lists(st.tuples(st.sampled_from(["a", "ab", "ac", "d"]), st.integers(0, 40)), min_size=1, max_size=12),
    st.integers(1, 20),
)
@settings(deadline=None, max_examples=60)
def test_shared_runs_are_beginnings_of_every_row_in_them(rows: list[tuple[str, int]], length: int) -> None:
    """They are long and common enough, end before the block that is written, and never overlap."""
    stretches = {"a": range(1, 1 + length), "b": range(100, 120), "c": range(200, 220), "d": range(300, 320)}
    tables = []
    for number, (path, num_own) in enumerate(rows):
        own = range(1000 * (number + 1), 1000 * (number + 1) + num_own + 1)
        tables.append(np.array([*[block for part in path for block in stretches[part]], *own]))
    where = np.array([32 * len(table) - 1 for table in tables])
    runs = find_runs(tables, where)
    in_runs = [int(row) for run in runs for row in run.rows]
    assert len(in_runs) == len(set(in_runs))
    for run in runs:
        assert len(run.rows) >= MIN_SHARERS
        assert len(run.blocks) >= MIN_SHARED_BLOCKS
        for row in run.rows:
            assert len(run.blocks) < len(tables[row])
            assert list(tables[row][: len(run.blocks)]) == list(run.blocks)


def test_the_runs_that_save_most_are_taken() -> None:
    """A short beginning that all share gives way to longer ones of fewer rows, and the other way round."""
    short, long, longer = list(range(1, 9)), list(range(10, 100)), list(range(100, 200))

    def runs(tables: list[list[int]]) -> list[tuple[int, int]]:
        arrays = [np.array([*table, 1000 + place]) for place, table in enumerate(tables)]
        found = find_runs(arrays, np.array([32 * len(array) - 1 for array in arrays]))
        return sorted((len(run.rows), len(run.blocks)) for run in found)

    assert runs([short + long] * 4 + [short + longer] * 5) == [(4, 98), (5, 108)]
    assert runs([short + long[:1]] * 4 + [short + longer[:1]] * 5 + [short] * 20) == [(29, 8)]
    assert runs([short] * 3) == []
    assert runs([short[:7]] * 9) == []
    assert runs([[*short, place] for place in range(4)]) == [(4, 8)]


def test_a_run_ends_before_the_block_that_is_written() -> None:
    """So rows of one sequence, which see different parts of it, still share what is before."""
    table = list(range(1, 12))
    rows = [Row(sequence=1, position=320 + number, token=0, table=table) for number in range(4)]
    places = Places(rows, ())
    (run,) = find_runs(places.row_tables, places.row_positions)
    assert list(run.blocks) == table[:10]
    pairs = pair_up(places.row_tables, places.row_positions, None, [run])
    assert list(pairs.blocks) == [11, 11, 11, 11]
    assert list(pairs.high) == [1, 2, 3, 4]


def test_tokens_have_places_of_their_own() -> None:
    """Rows come first, then the chunks; a slot is a block's head's token."""
    rows = [Row(sequence=1, position=33, token=0, table=[5, 7]), Row(sequence=2, position=31, token=0, table=(4,))]
    chunks = [Chunk(sequence=3, start=30, tokens=[1, 2, 3], table=[9, 2, 8])]
    places = Places(rows, chunks)
    assert list(places.positions) == [33, 31, 30, 31, 32]
    assert list(places.blocks) == [7, 4, 9, 9, 2]
    assert places.slots(2).tolist() == [[449, 481], [287, 319], [606, 638], [607, 639], [128, 160]]


@given(st.integers(0, 500), st.integers(1, 400), windows, st.integers(1, 64))
@settings(deadline=None, max_examples=40)
def test_tiles_cover_a_chunk_once(start: int, length: int, window: int | None, num_heads: int) -> None:
    """And each query's spans show it exactly the keys it may look at."""
    first_key = 0 if window is None else max(0, start - window + 1) // 32 * 32
    seen = np.zeros((length, start + length), dtype=int)
    for tiling in tile(start=start, length=length, first_key=first_key, window=window, num_heads=num_heads):
        for begin, end, bias in tiling.spans:
            shown = np.ones((tiling.stop - tiling.start, end - begin)) if bias is None else bias == 0
            seen[tiling.start : tiling.stop, first_key + begin : first_key + end] += shown.astype(int)
    queries, keys = np.arange(start, start + length)[:, None], np.arange(start + length)[None]
    expected = (keys <= queries) & (True if window is None else keys > queries - window)
    assert (seen == expected).all()
