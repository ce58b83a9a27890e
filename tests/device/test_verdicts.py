import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlxm.device import verdicts as module
from mlxm.device.verdicts import Verdict, Verdicts

CHILD = Path(__file__).parent / "children" / "tries.py"
FOUND = Verdict(kind="paged in place", why="right, and 1.0 ms", runs_ahead=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model, as far as verdicts look at it."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


@pytest.fixture
def verdicts(tmp_path: Path, model: Path) -> Verdicts:
    """The verdicts on the model."""
    return Verdicts(tmp_path / "deep" / "verdicts", model)


@contextmanager
def trying(tmp_path: Path, kind: str, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of a trial."""
    arguments = [sys.executable, str(CHILD), str(tmp_path / "deep" / "verdicts"), str(tmp_path / "model"), kind]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment)
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "trying\n"
            yield child
        finally:
            child.kill()


def test_what_was_found_is_kept(verdicts: Verdicts, model: Path) -> None:
    """For whoever opens the folder next."""
    assert verdicts.read() is None
    assert verdicts.fatal_kinds() == {}
    verdicts.write(FOUND)
    assert Verdicts(verdicts._folder, model).read() == FOUND


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"kind":"\xff","why":""}', b'{"kind":1,"why":""}', b"[]", b'{"why":"none"}']
)
def test_a_damaged_file_is_as_good_as_none(verdicts: Verdicts, content: bytes) -> None:
    """It is written anew."""
    verdicts._file.write_bytes(content)
    verdicts._deaths.write_bytes(content)
    assert verdicts.read() is None
    assert verdicts.fatal_kinds() == {}
    verdicts.write(FOUND)
    assert verdicts.read() == FOUND


def test_a_verdict_is_about_one_model_one_release_and_one_machine(
    verdicts: Verdicts, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an update everything is tried again; going back finds the old verdict."""
    verdicts.write(FOUND)
    with monkeypatch.context() as patch:
        patch.setattr(module, "version", lambda name: "99.0" if name == "mlx" else "1")
        assert Verdicts(verdicts._folder, model).read() is None
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "cpu_count", lambda: 1000)
        assert Verdicts(verdicts._folder, model).read() is None
    assert Verdicts(verdicts._folder, model).read() == FOUND
    (model / "config.json").write_text('{"model_type": "llama", "quantization": {"bits": 4}}')
    assert Verdicts(verdicts._folder, model).read() is None


def test_a_trial_leaves_nothing_behind_however_it_ends(verdicts: Verdicts) -> None:
    """As long as the process lives: an error, or Ctrl-C, says nothing about the store."""
    with verdicts.trial("a store"):
        assert len(list(verdicts._folder.glob("*.trying"))) == 1
    with pytest.raises(KeyboardInterrupt), verdicts.trial("a store"):
        raise KeyboardInterrupt
    assert list(verdicts._folder.iterdir()) == []
    assert verdicts.fatal_kinds() == {}


def test_a_store_that_ended_a_process_is_left_out(
    verdicts: Verdicts, tmp_path: Path, unmeasured: Mapping[str, str]
) -> None:
    """Next time; the time after that it has a second chance; with the second death it is out for good."""
    with trying(tmp_path, "paged in place", unmeasured) as child:
        child.kill()
        child.wait()
    assert verdicts.fatal_kinds() == {"paged in place": False}
    assert verdicts.fatal_kinds() == {"paged in place": False}
    provisional = Verdict(kind="gathered rows", why="the other one ended a process", is_final=False)
    verdicts.write(provisional)
    assert verdicts.read() is None
    assert verdicts.fatal_kinds() == {}
    with trying(tmp_path, "paged in place", unmeasured) as child:
        child.kill()
        child.wait()
    assert verdicts.fatal_kinds() == {"paged in place": True}
    assert list(verdicts._folder.glob("*.trying")) == []


def test_who_is_trying_at_the_same_time_is_not_dead(
    verdicts: Verdicts, tmp_path: Path, unmeasured: Mapping[str, str], is_gone: Callable[[int, float], bool]
) -> None:
    """Two processes may load one model; each ends its own trial."""
    with trying(tmp_path, "paged in place", unmeasured) as child:
        assert verdicts.fatal_kinds() == {}
        with verdicts.trial("paged in place"):
            assert verdicts.fatal_kinds() == {}
        child.communicate(timeout=20)
        assert child.returncode == 0
        assert is_gone(child.pid, 10)
    assert verdicts.fatal_kinds() == {}
    assert list(verdicts._folder.iterdir()) == []
