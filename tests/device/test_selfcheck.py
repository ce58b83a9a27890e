from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model

from mlxm.device import reference as references
from mlxm.device import selfcheck
from mlxm.device.attention import Hook, SharedRun
from mlxm.device.kv_store import LayerShape, read_shapes
from mlxm.device.layout import MIN_SHARED_BLOCKS, MIN_SHARERS, Run
from mlxm.device.paged import Batch, PagedStore
from mlxm.device.reference import Reference, compute_reference
from mlxm.device.rows import RowsStore
from mlxm.device.selfcheck import ahead_pays, blocks_needed, find_fault, time_rows, timing_blocks
from mlxm.engine.plan import Row
from tests.device.driver import tiny, tiny_folders
from tests.device.faulty import FAULTS, STORES, FaultyStore, MakeStore, MixedRows, planted, with_windows

VOCAB_SIZE = 1000
FIVE_AXES = partial(RowsStore, mask_axes=5)


@cache
def ask(architecture: str, folder: Path) -> tuple[Any, list[LayerShape], Reference]:
    """A tiny model and what is right for it."""
    model = tiny(architecture, folder).model
    shapes = read_shapes(model)
    return model, shapes, compute_reference(model, shapes, VOCAB_SIZE)


def judge(make: MakeStore, architecture: str, folder: Path) -> str | None:
    """What the check says of a store for a tiny model."""
    model, shapes, reference = ask(architecture, folder)
    return find_fault(make(model, shapes, blocks_needed(reference)), reference)


@pytest.mark.parametrize(
    ("architecture", "make"),
    [
        *((name, make) for name in ("llama", "gpt_oss", "gemma3_text", "mixtral") for make in STORES.values()),
        ("llama_sliding", partial(PagedStore, joins=False)),
        ("gemma2", FIVE_AXES),
        ("deepseek_v3", RowsStore),
    ],
)
def test_a_store_that_is_right_passes(architecture: str, make: MakeStore, folder: Path) -> None:
    """With windows, sinks, experts, attention of a model's own and latent vectors."""
    assert judge(make, architecture, folder) is None


@pytest.mark.parametrize("make", STORES.values(), ids=STORES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_error_is_found(fault: type[FaultyStore], make: MakeStore, folder: Path) -> None:
    """Though nothing is raised, and most numbers are right."""
    found = judge(planted(fault, make), "llama", folder)
    assert found is not None
    assert "logits were off by" in found


@pytest.mark.parametrize("make", STORES.values(), ids=STORES)
@pytest.mark.parametrize("change", [-1, 1, None], ids=["narrow", "wide", "none"])
@pytest.mark.parametrize("architecture", ["gpt_oss", "llama_sliding", "gemma3_text"])
def test_a_window_of_the_wrong_length_is_found(
    architecture: str, change: int | None, make: MakeStore, folder: Path
) -> None:
    """By one token, too, and when it is too wide or not there: somebody has to leave it."""
    assert judge(with_windows(make, 0), architecture, folder) is None
    assert judge(with_windows(make, change), architecture, folder) is not None


def test_a_prefix_that_is_read_once_for_several_rows_is_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside rows that do not share it, and among those alone; an error there is found."""
    seen = set()
    find_runs = Batch._find_runs

    def noting(batch: Batch) -> list:
        runs = find_runs(batch)
        seen.update((len(run.rows), len(run.blocks), len(run.rows) == batch.num_rows) for run in runs)
        return runs

    monkeypatch.setattr(Batch, "_find_runs", noting)
    assert judge(PagedStore, "llama", folder) is None
    assert seen == {(MIN_SHARERS, MIN_SHARED_BLOCKS, True), (MIN_SHARERS, MIN_SHARED_BLOCKS, False)}
    shared = Batch._shared

    def forgetful(batch: Batch, run: Run, heads: int) -> SharedRun:
        return shared(batch, Run(run.rows, run.blocks[1:]), heads)

    monkeypatch.setattr(Batch, "_shared", forgetful)
    assert judge(PagedStore, "llama", folder) is not None


def test_half_precision_is_judged_by_its_own_measure(folder: Path) -> None:
    """Its rounding is no fault, a wrong window is."""
    model, _ = load_model(tiny_folders(folder)["llama_sliding"])
    model.set_dtype(mx.bfloat16)
    shapes = read_shapes(model)
    reference = compute_reference(model, shapes, VOCAB_SIZE)
    assert 1e-2 <= reference.tolerance <= 1e-1
    for make in STORES.values():
        assert find_fault(make(model, shapes, blocks_needed(reference)), reference) is None
        planted_window = with_windows(make, None)
        assert find_fault(planted_window(model, shapes, blocks_needed(reference)), reference) is not None


@pytest.mark.parametrize(("architecture", "make"), [("phi", RowsStore), ("gemma2", FIVE_AXES)])
def test_half_precision_is_judged_where_attention_is_the_models_own(
    architecture: str, make: MakeStore, folder: Path
) -> None:
    """What rounding does there is seen as far as it can be."""
    model, _ = load_model(tiny_folders(folder)[architecture])
    model.set_dtype(mx.float16)
    shapes = read_shapes(model)
    reference = compute_reference(model, shapes, VOCAB_SIZE)
    assert find_fault(make(model, shapes, blocks_needed(reference)), reference) is None
    assert find_fault(planted(MixedRows, make)(model, shapes, blocks_needed(reference)), reference) is not None


def test_what_takes_too_long_is_left_out_and_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of a hundred thousand tokens is not worth an hour of the user's time."""
    monkeypatch.setattr(references, "_LONGEST_S", 0.0)
    model = tiny("gpt_oss", folder).model
    shapes = read_shapes(model)
    reference = compute_reference(model, shapes, VOCAB_SIZE)
    assert reference.untried == ("leaving the window of 16 tokens", "sharing prefixes")
    assert reference.num_sharers == 0
    assert find_fault(PagedStore(model, shapes, blocks_needed(reference)), reference) is None


def test_the_reference_needs_the_blocks_that_it_says(folder: Path) -> None:
    """The last one is used, and none beyond."""
    model = tiny("llama", folder).model
    shapes = read_shapes(model)
    reference = compute_reference(model, shapes, VOCAB_SIZE)
    used: set[int] = set()

    class Noting(FaultyStore):
        def row(self, row: Row) -> Row:
            used.update(row.table)
            return row

    num_blocks = blocks_needed(reference)
    assert find_fault(Noting(PagedStore(model, shapes, num_blocks)), reference) is None
    assert used == set(range(1, num_blocks))


def test_rows_are_timed_at_short_and_at_mixed_contexts(folder: Path) -> None:
    """Within the blocks that were asked for."""
    model = tiny("llama", folder).model
    contexts: list[tuple[int, ...]] = []
    used: set[int] = set()

    class Noting(FaultyStore):
        def compute(self, rows: Sequence[Row], tokens: object, chunks: object) -> object:
            contexts.append(tuple(row.position for row in rows))
            used.update(block for row in rows for block in row.table)
            return super().compute(rows, tokens, chunks)

    num_blocks = timing_blocks(4)
    assert time_rows(Noting(PagedStore(model, read_shapes(model), num_blocks)), 4) > 0
    assert contexts[0] == (64, 64, 64, 64)
    assert (32, 102, 323, 1024) in contexts
    assert used <= set(range(1, num_blocks))


def test_running_ahead_has_to_pay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are run both ways, and the way with one in flight has to be faster by more than chance."""
    model = tiny("llama", folder).model
    store = PagedStore(model, read_shapes(model), timing_blocks(2))
    assert isinstance(ahead_pays(store, 2), bool)
    times_s = {0: 1.0, 1: 0.5}
    monkeypatch.setattr(selfcheck, "_run_steps", lambda _runner, _rows, depth: times_s[depth])
    assert ahead_pays(store, 2)
    times_s[1] = 0.99
    assert not ahead_pays(store, 2)


def test_the_hook_leaves_mlx_lm_right(folder: Path) -> None:
    """The reference of a model is the same before and after stores were built for it."""
    model = tiny("qwen3", folder).model
    shapes = read_shapes(model)
    before = compute_reference(model, shapes, VOCAB_SIZE)
    PagedStore(model, shapes, 4)
    after = compute_reference(model, shapes, VOCAB_SIZE)
    assert all(mx.array_equal(*pair) for pair in zip(before.logits, after.logits, strict=True))
    module = __import__(type(model).__module__, fromlist=["scaled_dot_product_attention"])
    assert isinstance(module.scaled_dot_product_attention, Hook)
