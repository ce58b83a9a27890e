from pathlib import Path

import pytest

from mlxm.errors import ConfigInvalid
from mlxm.hub import pool_wishes
from mlxm.pool.limit import GB, MemoryLimit
from mlxm.settings import Settings, find_setting, load_settings, parse_share
from mlxm.settings.config_file import set_values


@pytest.mark.parametrize(
    ("text", "share"),
    [("80%", (80.0, None)), ("62.5 %", (62.5, None)), ("48GB", (None, 48 * GB)), (" 1 GiB ", (None, 1024**3))],
)
def test_a_share_is_a_percentage_or_a_size(text: str, share: tuple[float | None, int | None]) -> None:
    """As people write them."""
    assert parse_share(text) == share
    assert find_setting("memory.budget").accept(text) == text.strip()


@pytest.mark.parametrize("text", ["", "%", "0%", "101%", "-5%", "80 percent", "many", "0GB", 7, None])
def test_what_is_neither_is_refused(text: object) -> None:
    """With what is allowed."""
    with pytest.raises(ValueError, match=r"\S"):
        find_setting("memory.budget").accept(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [("memory.reserve", "little"), ("models.preload", '[" "]'), ("models.max", "-1"), ("models.policy", "fifo")],
)
def test_other_mistakes_are_refused_too(tmp_path: Path, name: str, value: str) -> None:
    """The file stays as it was."""
    with pytest.raises(ConfigInvalid, match=name):
        set_values(tmp_path, {name: value})
    assert not (tmp_path / "config.toml").exists()


def test_the_pool_obeys_what_was_set(mlxm_home: Path) -> None:
    """Budget, reserve, number, policy, times, preloaded models, spare worker; zeros mean without a limit."""
    assert pool_wishes(Settings()).options.memory == MemoryLimit(percent=80.0)
    assert pool_wishes(Settings()).options.max_models is None
    set_values(
        mlxm_home,
        {
            "memory.budget": "48GB",
            "memory.reserve": "6GB",
            "models.max": 3,
            "models.policy": "lfu",
            "models.keep_alive_s": 0,
            "models.preload": '["a/b", "c"]',
            "models.queue_s": 5,
            "models.max_queued": 7,
            "worker.spare": "false",
        },
    )
    wishes = pool_wishes(load_settings())
    options = wishes.options
    assert options.memory == MemoryLimit(percent=None, num_bytes=48 * GB, reserve_bytes=6 * GB)
    assert (options.max_models, options.policy, options.keep_alive_s, options.has_spare) == (3, "lfu", None, False)
    assert (options.queue_s, options.max_queued, wishes.preload) == (5.0, 7, ("a/b", "c"))
