import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from mlxm.device import choice, paged, rows
from mlxm.device.batch_build import ALONE_KIND, BATCHED_KIND
from mlxm.device.choice import CANDIDATES, Candidate, RunnerOptions, open_runner, plan_pool
from mlxm.device.paged import PagedStore
from mlxm.device.rows import RowsStore
from mlxm.device.verdicts import Verdict
from mlxm.engine.plan import RunnerFacts
from mlxm.errors import InternalError, OutOfMemory
from tests.device.driver import tiny, tiny_folders
from tests.device.faulty import LateRows, MakeStore, MixedRows, planted, with_windows

CHILD = Path(__file__).parent / "children" / "deadly_trial.py"
MEMORY_BYTES = 1 << 27


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The stores that were built, by name, in that order; each is right."""
    built: list[str] = []

    def noting(kind: str, make: MakeStore) -> Candidate:
        def build(*arguments: object) -> object:
            built.append(kind)
            return make(*arguments)

        return Candidate(kind, build)

    stores = ((noting(paged.KIND, PagedStore),), (noting(rows.KIND, RowsStore),))
    monkeypatch.setattr(choice, "CANDIDATES", stores)
    return built


@pytest.fixture
def verdicts(tmp_path: Path) -> Path:
    """Where verdicts are kept."""
    return tmp_path / "verdicts"


def use(monkeypatch: pytest.MonkeyPatch, in_place: MakeStore, gathered: MakeStore = RowsStore) -> None:
    """Let these be the stores there are."""
    families = ((Candidate(paged.KIND, in_place),), (Candidate(rows.KIND, gathered),))
    monkeypatch.setattr(choice, "CANDIDATES", families)


def open_tiny(folder: Path, name: str, verdicts: Path | None = None, **options: object) -> RunnerFacts:
    """What the runner of a tiny model says of itself."""
    kept = {} if verdicts is None else {"folder": tiny_folders(folder)[name], "verdicts": verdicts}
    chosen = RunnerOptions(**{"memory_bytes": MEMORY_BYTES, "max_rows": 4, **kept, **options})
    return open_runner(tiny(name, folder), chosen).facts


# ── which one ────────────────────────────────────────────────────────────────────────────────────


def test_the_fastest_that_is_right_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the runner says how long each took; one that copies what it reads must be faster by some."""
    times_s = {PagedStore: 0.0105, RowsStore: 0.01}
    monkeypatch.setattr(choice, "time_rows", lambda store, _rows: times_s[type(store)])
    facts = open_tiny(folder, "llama")
    assert facts.kind == paged.KIND
    assert "4 rows: gathered rows 10.0 ms, paged in place 10.5 ms" in facts.why
    times_s[PagedStore] = 0.0115
    assert open_tiny(folder, "llama").kind == rows.KIND


def test_what_was_not_tried_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For want of time."""
    monkeypatch.setattr("mlxm.device.reference._LONGEST_S", 0.0)
    why = open_tiny(folder, "gpt_oss").why
    assert why.endswith("; not tried, for time: leaving the window of 16 tokens, sharing prefixes")


@pytest.mark.parametrize("fault", [LateRows, MixedRows])
def test_a_store_that_is_wrong_is_not_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: type[LateRows] | type[MixedRows]
) -> None:
    """Though it was the fastest; the reason is told."""
    use(monkeypatch, planted(fault, PagedStore))
    facts = open_tiny(folder, "llama")
    assert facts.kind == rows.KIND
    assert "; not paged in place: logits were off by" in facts.why


def test_a_store_that_keeps_no_windows_is_not_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a model that has some shows it."""
    use(monkeypatch, with_windows(PagedStore, None))
    monkeypatch.setattr(choice, "time_rows", lambda store, _rows: 1.0 if type(store) is PagedStore else 2.0)
    assert open_tiny(folder, "gpt_oss").kind == rows.KIND
    assert open_tiny(folder, "llama").kind == paged.KIND


def test_the_next_of_a_family_is_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each family the first one that is right."""
    (first, second), *others = CANDIDATES
    families = ((Candidate(first.kind, planted(LateRows, first.make)), second), *others)
    monkeypatch.setattr(choice, "CANDIDATES", families)
    monkeypatch.setattr(choice, "time_rows", lambda store, _rows: 1.0 if type(store) is PagedStore else 2.0)
    assert open_tiny(folder, "llama").kind == second.kind


def test_a_store_that_fails_while_it_is_timed_is_not_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For want of memory, say."""

    def fail(store: object, _rows: int) -> float:
        if type(store) is PagedStore:
            raise RuntimeError("[malloc] Unable to allocate 1 bytes.\nmore")
        return 1.0

    monkeypatch.setattr(choice, "time_rows", fail)
    facts = open_tiny(folder, "llama")
    assert facts.kind == rows.KIND
    assert facts.why.endswith("not paged in place: RuntimeError: [malloc] Unable to allocate 1 bytes.")


def test_a_store_may_be_asked_for(folder: Path, tries: list[str]) -> None:
    """It is built once, and not checked; there must be one of that name."""
    facts = open_tiny(folder, "llama", kind=rows.KIND)
    assert (facts.kind, facts.why, tries) == (rows.KIND, "it was asked for", [rows.KIND])
    with pytest.raises(InternalError, match="no KV store named 'magic'"):
        open_tiny(folder, "llama", kind="magic")


@pytest.mark.parametrize(("pays", "is_gpu"), [(True, True), (False, True), (True, False)])
def test_steps_run_ahead_where_that_pays(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    pays: bool,  # noqa: FBT001
    is_gpu: bool,  # noqa: FBT001
) -> None:
    """On the CPU launching is computing, so nobody asks."""
    monkeypatch.setattr(choice, "on_cpu", lambda: not is_gpu)
    monkeypatch.setattr(choice, "ahead_pays", lambda _store, _rows: pays)
    facts = open_tiny(folder, "llama", memory_bytes=None, num_blocks=8)
    assert facts.runs_ahead is (pays and is_gpu)


# ── models that do not fit into blocks ───────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "kind", "reasons"),
    [
        ("qwen3_next", BATCHED_KIND, ("in a batch each row got what it gets alone", "its layers keep a ArraysCache")),
        ("mamba2", BATCHED_KIND, ("in a batch each row got what it gets alone", "its layers keep a ArraysCache")),
        ("jamba", BATCHED_KIND, ("in a batch each row got what it gets alone", "its layers keep a ArraysCache")),
        ("deepseek_v32", BATCHED_KIND, ("in a batch each row got what it gets alone", "its layers keep a CacheList")),
        ("llama4", ALONE_KIND, ("mlx-lm has no batch form of ChunkedKVCache", "its layers keep a ChunkedKVCache")),
        ("gpt_bigcode", ALONE_KIND, ("does not run on batch caches", "not paged in place: ", "not gathered rows: ")),
        ("afm7", ALONE_KIND, ("its logits are others in a batch", "not paged in place: ", "not gathered rows: ")),
    ],
)
def test_what_fits_no_store_goes_to_mlx_lms_own_caches(
    folder: Path, name: str, kind: str, reasons: tuple[str, ...]
) -> None:
    """In a batch if that is right, else one at a time; the runner says why, on both counts."""
    facts = open_tiny(folder, name)
    assert facts.kind == kind
    assert not facts.shares_prefixes
    assert "; not in blocks: " in facts.why
    for reason in reasons:
        assert reason in facts.why


def test_latent_vectors_fit_into_gathered_rows(folder: Path) -> None:
    """And why not in place is said."""
    facts = open_tiny(folder, "deepseek_v3")
    assert (facts.kind, facts.shares_prefixes) == (rows.KIND, True)
    assert "not paged in place: " in facts.why


def test_when_every_store_is_wrong_mlx_lms_caches_serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never something wrong."""
    use(monkeypatch, planted(LateRows, PagedStore), planted(LateRows, RowsStore))
    facts = open_tiny(folder, "llama")
    assert facts.kind == BATCHED_KIND
    assert "not gathered rows: logits were off by" in facts.why


# ── memory ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("block_bytes", "context_length", "max_rows", "memory_bytes", "num_blocks"),
    [
        (100, 320, 4, 1_000_000, 1 + 4 * 10),
        (100, 32 * 1_000, 2, 1_000_000, 1 + 1_000),
        (100, 32 * 1_000, 16, 1_000_000, 1 + 16 * 128),
        (100, 32 * 1_000, 16, 50_099, 500),
        (100, 1, 1, 1_000, 2),
        (100, 320, 4, 200, 2),
    ],
    ids=["each row's context", "one context", "usual lengths", "what there is", "one token", "least"],
)
def test_a_pool_is_as_large_as_is_useful_and_possible(
    block_bytes: int, context_length: int, max_rows: int, memory_bytes: int, num_blocks: int
) -> None:
    """One whole context, or the usual length for each row, and scratch."""
    assert plan_pool(block_bytes, context_length, max_rows, memory_bytes) == num_blocks


def test_too_little_memory_names_both_numbers() -> None:
    """What is needed, and what there is."""
    message = r"need at least 64 MB, and 50 MB are left for them\."
    with pytest.raises(OutOfMemory, match=message) as raised:
        plan_pool(32_000_000, 4096, 16, 50_000_000)
    assert raised.value.hint == "Choose a smaller model, or stop other programs."


@pytest.mark.parametrize(
    ("name", "size_bytes"), [("llama", 3 * 2 * 2 * 16 * 4 * 32), ("gpt_oss", 4 * 2 * 2 * 16 * 4 * 32)]
)
def test_a_runner_keeps_to_its_memory(folder: Path, name: str, size_bytes: int) -> None:
    """Blocks times their size; a context that is given counts more than the model's."""
    facts = open_tiny(folder, name, kind=paged.KIND, memory_bytes=50 * size_bytes + 1)
    assert (facts.block_bytes, facts.num_blocks) == (size_bytes, 50)
    assert open_tiny(folder, name, kind=paged.KIND, context_length=64).num_blocks == 1 + 4 * 2
    assert open_tiny(folder, name, kind=paged.KIND, num_blocks=7).num_blocks == 7
    with pytest.raises(OutOfMemory):
        open_tiny(folder, name, kind=paged.KIND, memory_bytes=size_bytes)


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────


def test_a_verdict_saves_the_trial(folder: Path, verdicts: Path, tries: list[str]) -> None:
    """The second time only the store that was chosen is built."""
    first = open_tiny(folder, "llama", verdicts)
    assert tries == [paged.KIND, rows.KIND, paged.KIND, rows.KIND, first.kind]
    tries.clear()
    assert open_tiny(folder, "llama", verdicts) == first
    assert tries == [first.kind]


@pytest.mark.parametrize(
    "content",
    [b"garbage", b"", msgspec.json.encode(Verdict(kind="a store of the past", why="it was fast"))],
    ids=["garbage", "empty", "unknown store"],
)
def test_a_verdict_that_is_of_no_use_is_replaced(
    folder: Path, verdicts: Path, tries: list[str], content: bytes
) -> None:
    """As if there were none."""
    first = open_tiny(folder, "llama", verdicts)
    (file,) = verdicts.iterdir()
    file.write_bytes(content)
    tries.clear()
    again = open_tiny(folder, "llama", verdicts)
    assert len(tries) > 1
    assert msgspec.json.decode(file.read_bytes(), type=Verdict).why == again.why
    assert again.num_blocks == first.num_blocks


def test_a_verdict_of_another_mlx_is_not_heeded(
    folder: Path, verdicts: Path, tries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update may have mended or broken a store."""
    with monkeypatch.context() as patch:
        patch.setattr("mlxm.device.verdicts.version", lambda _: "0.0.1")
        open_tiny(folder, "llama", verdicts)
    tries.clear()
    open_tiny(folder, "llama", verdicts)
    assert len(tries) > 1
    assert len(list(verdicts.iterdir())) == 2


def test_a_store_that_kills_the_process_is_left_out_next_time(
    folder: Path, verdicts: Path, tries: list[str], unmeasured: Mapping[str, str]
) -> None:
    """The model loads with another one; later that store is tried once more: processes die of other things too."""
    model = tiny_folders(folder)["llama"]
    died = subprocess.run([sys.executable, str(CHILD), str(model), str(verdicts)], env=unmeasured, check=False)
    assert died.returncode == -9
    facts = open_tiny(folder, "llama", verdicts)
    assert facts.kind == rows.KIND
    assert facts.why.endswith("not paged in place: the process ended while it was tried")
    assert paged.KIND not in tries
    facts = open_tiny(folder, "llama", verdicts)
    assert paged.KIND in tries
    assert "the process ended" not in facts.why
    tries.clear()
    assert open_tiny(folder, "llama", verdicts) == facts
    assert tries == [facts.kind]
