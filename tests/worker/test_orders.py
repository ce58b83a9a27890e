import os
from pathlib import Path

import msgspec
import pytest

from mlxm.frames import Generate
from mlxm.testing.runner import facts_of
from mlxm.types import Grammar, Sampling
from mlxm.worker.orders import Orders, scope_of

FACTS = facts_of()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, as far as it has an identity."""
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_all_that_a_request_asks_for_is_ordered() -> None:
    """Whatever has the same name on both sides; the model's stop tokens and identity are added."""
    request = Generate(
        request_id="a",
        prompt_ids=(1, 2),
        sampling=Sampling(temperature=0.5, seed=3),
        max_tokens=9,
        stop=("x",),
        stop_ids=(7,),
        num_choices=3,
        priority=0,
        scope=b"key",
        num_logprobs=2,
        prompt_logprobs=True,
        grammar=Grammar(kind="regex", source="a+"),
        kept_ids=(9,),
    )
    order = Orders(stop_ids=frozenset({5}), scope=b"model")(request)
    assert (order.stop_ids, order.extra_stop_ids) == (frozenset({5}), frozenset({7}))
    assert order.scope == b"modelkey"
    assert order.kept_ids == frozenset({9})
    names = set(Generate.__struct_fields__) - {"stop_ids", "scope", "kept_ids"}
    assert {name: getattr(order, name) for name in names} == {name: getattr(request, name) for name in names}


def test_what_a_request_leaves_open_is_the_models_own() -> None:
    """And what it says counts, also where that asks for nothing."""
    own = Sampling(temperature=0.7, top_p=0.8, top_k=20, min_p=0.1, repetition_penalty=1.05)
    orders = Orders(stop_ids=frozenset(), scope=b"", sampling=own)

    def sampling_of(asked: Sampling) -> Sampling:
        return orders(Generate(request_id="a", prompt_ids=(1,), sampling=asked)).sampling

    open_only = Sampling(seed=3, presence_penalty=0.5, min_tokens=2)
    assert sampling_of(open_only) == msgspec.structs.replace(own, seed=3, presence_penalty=0.5, min_tokens=2)
    said = Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)
    assert sampling_of(said) == said


def test_a_model_has_one_scope(folder: Path) -> None:
    """The same every time, and of one length whatever the model."""
    assert scope_of(folder, FACTS) == scope_of(folder, FACTS)
    (folder / "config.json").unlink()
    assert len(scope_of(folder, FACTS)) == 16


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_another_text_is_another_scope(folder: Path, name: str) -> None:
    """Whichever file it is in."""
    before = scope_of(folder, FACTS)
    (folder / name).write_text("another")
    assert before != scope_of(folder, FACTS)


def test_other_weights_and_stores_are_other_scopes(folder: Path) -> None:
    """Weights that were exchanged, and keys and values that are kept in another way."""
    before = scope_of(folder, FACTS)
    assert before != scope_of(folder, msgspec.structs.replace(FACTS, kind="another"))
    assert before != scope_of(folder, msgspec.structs.replace(FACTS, block_bytes=2))
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert before != scope_of(folder, FACTS)


def test_text_that_moves_between_files_is_told_apart(folder: Path) -> None:
    """Nothing is joined without saying where it ends."""
    before = scope_of(folder, FACTS)
    (folder / "config.json").write_text("config.jsontokenizer.json")
    (folder / "tokenizer.json").write_text("")
    assert before != scope_of(folder, FACTS)
