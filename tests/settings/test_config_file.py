from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from mlxm.errors import ConfigInvalid, DiskFull, MlxmError, StoreError, StoreReadOnly
from mlxm.settings import SETTINGS, config_file, load_settings
from mlxm.settings.config_file import check_config, set_values, start_config, unset_values

BOUND_S = 30
LAYOUTS = {
    "empty": "",
    "only a comment": "# mine\n",
    "table": "# mine\n\n[server]\n# about the host\nhost = '::1' # local\n\n# about logs\n[log]\nlevel = 'error'\n",
    "table with the key": "[server]\nhost = '::1' # local\nport = 80   # web\n\n# about logs\n[log]\nlevel = 'error'\n",
    "other table": "[log]\nlevel = 'error' # quiet\n",
    "dotted keys": "server.host = '::1' # local\n# about logs\n[log]\nlevel = 'error'\n",
    "dotted key": "server.port = 80 # web\n",
    "inline table": "server = { host = '::1', port = 80 } # all in one\n",
    "table without a key": "[server]\n# nothing yet\n\n# about logs\n[log]\nlevel = 'error'\n",
    "no newline at the end": "[server]\nhost = '::1' # local",
    "indented": "[server]\n    host = '::1'\n    # and so on\n",
    "windows lines": "[server]\r\nhost = '::1' # local\r\n\r\n# about logs\r\n[log]\r\nlevel = 'error'\r\n",
}
EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def flat(text: str) -> dict[str, Any]:
    """The values of a TOML text by dotted name."""
    return {f"{group}.{key}": value for group, table in tomllib.loads(text).items() for key, value in table.items()}


def remarks(text: str) -> list[str]:
    """The comments of a TOML text, in their order."""
    return re.findall(r"#.*", text)


@EVERY_LAYOUT
def test_a_set_value_is_in_the_file_and_all_else_stays(config: Path, layout: str) -> None:
    """Comments, layout and other values are the person's own."""
    config.write_bytes(layout.encode())
    assert set_values(config.parent, {"server.port": "8080"}) == {"server.port": 8080}
    after = config.read_bytes().decode()
    assert {**flat(layout), "server.port": 8080} == flat(after)
    assert remarks(layout) == remarks(after)
    kept = [line for line in layout.splitlines() if "port" not in line]
    assert kept == [line for line in after.splitlines() if line in kept]


@EVERY_LAYOUT
def test_an_unset_value_is_out_of_the_file_and_all_else_stays(config: Path, layout: str) -> None:
    """Taking out what is not there changes nothing."""
    config.write_bytes(layout.encode())
    before = flat(layout)
    removed = unset_values(config.parent, ["server.port"])
    assert removed == (["server.port"] if "server.port" in before else [])
    after = config.read_bytes().decode()
    assert {name: value for name, value in before.items() if name != "server.port"} == flat(after)
    if not removed:
        assert layout == after


def test_a_new_key_stands_with_its_table(config: Path) -> None:
    """A comment above the next table stays above it."""
    config.write_text(LAYOUTS["table"])
    set_values(config.parent, {"server.port": 8080})
    assert config.read_text() == dedent(
        """\
        # mine

        [server]
        # about the host
        host = '::1' # local
        port = 8080

        # about logs
        [log]
        level = 'error'
        """
    )


def test_a_change_keeps_the_comment_behind_the_value(config: Path) -> None:
    """The remark is about the setting, not about its old value."""
    config.write_text("[server]\nport = 80   # web\n")
    set_values(config.parent, {"server.port": 8080})
    assert config.read_text() == "[server]\nport = 8080   # web\n"


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_every_default_can_be_written_and_taken_out(setting: Any, config: Path) -> None:
    """What `set` writes is what `load_settings` reads."""
    set_values(config.parent, {setting.name: str(setting.default)})
    assert {setting.name: setting.default} == flat(config.read_text())
    assert load_settings(environ={"MLXM_HOME": str(config.parent)}).origin_of(setting.name) == "config.toml"
    assert [setting.name] == unset_values(config.parent, [setting.name])
    assert load_settings(environ={"MLXM_HOME": str(config.parent)}).origin_of(setting.name) == "default"


def test_a_set_value_survives_the_process(home: Path) -> None:
    """Another process reads what this one wrote."""
    set_values(home, {"server.port": 8080})
    code = "from mlxm.settings import load_settings; print(load_settings().server.port)"
    environ = {**os.environ, "MLXM_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, timeout=BOUND_S, check=True)
    assert done.stdout == b"8080\n"


@pytest.mark.parametrize(
    "changes", [{"server.port": "99999"}, {"log.level": "debug", "server.port": -1}, {"server.prot": 1}]
)
def test_a_refused_change_leaves_the_file_alone(config: Path, changes: dict[str, object]) -> None:
    """All or none."""
    config.write_text(LAYOUTS["table"])
    with pytest.raises(ConfigInvalid):
        set_values(config.parent, changes)
    assert LAYOUTS["table"] == config.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[log]\nlevel = 'loud'\n", "log.level"),
        ("[servr]\n", "servr"),
        ("server = 5\n", "server in config.toml is not a table"),
        ("[server", "line 1, column 8"),
    ],
)
def test_a_change_to_a_file_with_a_mistake_is_refused(config: Path, text: str, message: str) -> None:
    """The whole result must be valid, not only what changes."""
    config.write_text(text)
    with pytest.raises(ConfigInvalid, match=message):
        set_values(config.parent, {"server.port": 80})
    assert text == config.read_text()


def test_a_mistake_is_corrected_by_setting_it(config: Path) -> None:
    """The result is valid, whatever was there before."""
    config.write_text("[log]\nlevel = 'loud' # please\n")
    set_values(config.parent, {"log.level": "debug"})
    assert config.read_text() == '[log]\nlevel = "debug" # please\n'


def test_mistakes_are_taken_out_one_by_one(config: Path) -> None:
    """Unknown names may go, tables whole, and each step may leave the others."""
    config.write_text("[servr]\nport = 1\n[server]\nprot = 1\n[log]\nlevel = 'loud'\n")
    assert unset_values(config.parent, ["servr"]) == ["servr"]
    assert unset_values(config.parent, ["server.prot"]) == ["server.prot"]
    with pytest.raises(ConfigInvalid):
        check_config(config)
    assert unset_values(config.parent, ["log.level"]) == ["log.level"]
    check_config(config)


@pytest.mark.parametrize("name", ["server.prot", "servr", "server", "server.port.deep"])
def test_what_is_neither_known_nor_there_cannot_be_taken_out(config: Path, name: str) -> None:
    """Nor can a group that mlxm knows."""
    config.write_text("[server]\nport = 80\n")
    with pytest.raises(ConfigInvalid):
        unset_values(config.parent, [name])
    assert config.read_text() == "[server]\nport = 80\n"


def test_home_and_file_are_for_their_owner_alone(home: Path) -> None:
    """Whatever the umask, and whatever mode the file had before."""
    before = os.umask(0o777)
    try:
        set_values(home, {"server.port": 80})
    finally:
        os.umask(before)
    config = home / "config.toml"
    assert (stat.S_IMODE(home.stat().st_mode), stat.S_IMODE(config.stat().st_mode)) == (0o700, 0o600)
    config.chmod(0o644)
    set_values(home, {"server.port": 81})
    assert stat.S_IMODE(config.stat().st_mode) == 0o600


def test_a_linked_file_stays_a_link(config: Path, tmp_path: Path) -> None:
    """People keep their configuration elsewhere, and link it."""
    elsewhere = tmp_path / "dotfiles.toml"
    elsewhere.write_text("# mine\n")
    config.symlink_to(elsewhere)
    set_values(config.parent, {"server.port": 80})
    assert config.is_symlink()
    assert elsewhere.read_text() == "# mine\n\n[server]\nport = 80\n"


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EROFS, StoreReadOnly), (errno.EIO, StoreError)]
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    config: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[MlxmError]
) -> None:
    """The draft is removed, and the error names the path."""
    config.write_text(LAYOUTS["table"])

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(config_file.os, "fsync", fail)
    with pytest.raises(kind, match=re.escape(str(config))) as caught:
        set_values(config.parent, {"server.port": 80})
    assert type(caught.value) is kind
    assert LAYOUTS["table"] == config.read_text()
    assert [config] == list(config.parent.iterdir())


def test_a_process_killed_before_the_rename_leaves_the_old_file(config: Path) -> None:
    """The new text is complete beside it, and not yet in its place."""
    config.write_text(LAYOUTS["table"])
    code = dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from mlxm.settings.config_file import set_values
        Path.replace = lambda draft, target: os.kill(os.getpid(), signal.SIGKILL)
        set_values(Path(sys.argv[1]), {"server.port": 80})
        """
    )
    done = subprocess.run([sys.executable, "-c", code, config.parent], timeout=BOUND_S, check=False)
    assert done.returncode == -signal.SIGKILL
    assert LAYOUTS["table"] == config.read_text()
    (draft,) = (path for path in config.parent.iterdir() if path != config)
    assert flat(draft.read_text())["server.port"] == 80
    set_values(config.parent, {"server.port": 81})
    assert flat(config.read_text())["server.port"] == 81


def test_two_changes_at_once_are_both_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits until the first has written."""
    has_read, may_write = threading.Event(), threading.Event()
    put = config_file._put

    def put_late(document: Any, name: str, value: object) -> None:
        if name == "server.port":
            has_read.set()
            assert may_write.wait(BOUND_S)
        put(document, name, value)

    monkeypatch.setattr(config_file, "_put", put_late)
    first = threading.Thread(target=set_values, args=(home, {"server.port": 80}))
    second = threading.Thread(target=set_values, args=(home, {"log.level": "debug"}))
    first.start()
    assert has_read.wait(BOUND_S)
    second.start()
    second.join(0.2)
    waited = second.is_alive()
    may_write.set()
    first.join(BOUND_S)
    second.join(BOUND_S)
    assert waited
    assert flat((home / "config.toml").read_text()) == {"server.port": 80, "log.level": "debug"}


def test_a_new_file_offers_every_setting_commented_out(home: Path) -> None:
    """It changes nothing by itself, and each of its lines is right once the # is gone."""
    path = start_config(home)
    text = path.read_text()
    assert flat(text) == {}
    opened = re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)
    assert flat(opened) == {setting.name: setting.default for setting in SETTINGS.values()}


def test_a_file_that_is_there_is_not_started_anew(config: Path) -> None:
    """What a person wrote is never replaced by a draft."""
    config.write_text("# mine\n")
    assert start_config(config.parent).read_text() == "# mine\n"


def test_a_home_that_is_a_file_is_an_error_with_its_name(home: Path) -> None:
    """Nothing can be kept in it."""
    home.write_text("")
    with pytest.raises(MlxmError, match=re.escape(str(home))):
        set_values(home, {"server.port": 80})
