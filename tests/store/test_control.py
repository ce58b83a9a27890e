from __future__ import annotations

import stat
from pathlib import Path

import pytest

from mlxm.errors import SecretUnreadable
from mlxm.store.control import new_control, publish_control, read_control, withdraw_control
from mlxm.store.lock import HomeLock

URL = "http://127.0.0.1:6596"


def test_a_server_is_found_while_it_lives(tmp_path: Path) -> None:
    """What is published is read, and gone when it is withdrawn; withdrawing twice does no harm."""
    control = new_control(URL)
    with HomeLock(tmp_path):
        publish_control(tmp_path, control)
        assert read_control(tmp_path) == control
        withdraw_control(tmp_path)
        assert read_control(tmp_path) is None
        withdraw_control(tmp_path)


def test_files_of_a_killed_server_lead_nowhere(tmp_path: Path) -> None:
    """Nobody holds the lock, so nobody is there; the next server puts its own in their place."""
    with HomeLock(tmp_path):
        publish_control(tmp_path, new_control(URL))
    assert read_control(tmp_path) is None
    second = new_control(URL)
    with HomeLock(tmp_path):
        publish_control(tmp_path, second)
        assert read_control(tmp_path) == second


def test_a_token_is_new_each_time_and_for_its_owner_alone(tmp_path: Path) -> None:
    """Long enough not to be guessed; a file that others could read is refused."""
    tokens = {new_control(URL).token for _ in range(100)}
    assert len(tokens) == 100
    assert min(map(len, tokens)) >= 43
    with HomeLock(tmp_path):
        publish_control(tmp_path, new_control(URL))
        path = tmp_path / "run" / "control-token"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o644)
        with pytest.raises(SecretUnreadable):
            read_control(tmp_path)
