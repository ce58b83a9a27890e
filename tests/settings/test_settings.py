from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import Field, ValidationError, create_model

from mlxm.errors import ConfigInvalid
from mlxm.settings import (
    SETTINGS,
    Setting,
    Settings,
    explain_settings,
    find_setting,
    home_folder,
    load_settings,
)
from mlxm.settings.groups import Group

ROOT = Path(__file__).parents[2]
EVERY_SETTING = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
# Text that no kind of setting allows.
NOT_ALLOWED = "not allowed"


def other_values(setting: Setting) -> Iterator[Any]:
    """Values, as config.toml has them, that the setting allows and that are not its default."""
    guesses: list[object] = [
        *get_args(setting.field.annotation),
        "7MB",
        "8MB",
        "77MB",
        "78MB",
        "/opt/blas.so",
        "/opt/other.so",
        "::1",
        '["a.example"]',
        '["b.example"]',
        '["http://a.example"]',
        '["http://b.example"]',
    ]
    if isinstance(setting.default, bool):
        yield from (not setting.default, setting.default)  # there are no two others
    elif isinstance(setting.default, int | float):
        guesses = [setting.default + 1, setting.default + 2]
    for guess in guesses:
        try:
            value = setting.dump(setting.accept(guess))
        except ValueError:
            continue
        if value != setting.default:
            yield value


def as_text(value: object) -> str:
    """A value as a variable or a flag has it."""
    return value if isinstance(value, str) else json.dumps(value)


def toml_line(setting: Setting, value: object) -> str:
    """A value as a line of config.toml."""
    return f"{setting.name} = {json.dumps(value)}\n"


def loaded(setting: Setting, home: Path, overrides: dict[str, object] | None = None, **environ: str) -> tuple[Any, str]:
    """The setting's value in force and its origin."""
    settings = load_settings(overrides, {"MLXM_HOME": str(home), **environ})
    return next((row.value, row.origin) for row in explain_settings(settings) if row.name == setting.name)


def refusal(home: Path, overrides: dict[str, object] | None = None, **environ: str) -> ConfigInvalid:
    """The error that loading ends with."""
    with pytest.raises(ConfigInvalid) as caught:
        load_settings(overrides, {"MLXM_HOME": str(home), **environ})
    return caught.value


@EVERY_SETTING
def test_a_setting_that_nobody_sets_has_its_default(setting: Setting, home: Path) -> None:
    """A home that does not exist is all defaults."""
    assert (setting.default, "default") == loaded(setting, home)


@EVERY_SETTING
def test_a_setting_comes_from_config_toml(setting: Setting, config: Path) -> None:
    """What people write in the file counts more than the default."""
    value = next(other_values(setting))
    config.write_text(toml_line(setting, value))
    assert (value, "config.toml") == loaded(setting, config.parent)


@EVERY_SETTING
def test_a_setting_comes_from_its_variable(setting: Setting, config: Path) -> None:
    """The environment counts more than the file."""
    first, second = list(other_values(setting))[:2]
    config.write_text(toml_line(setting, second))
    found = loaded(setting, config.parent, **{setting.env_name: as_text(first)})
    assert (first, f"environment {setting.env_name}") == found


@EVERY_SETTING
def test_a_setting_comes_from_a_flag(setting: Setting, config: Path) -> None:
    """A flag counts more than everything else, as text and typed."""
    first, second = list(other_values(setting))[:2]
    config.write_text(toml_line(setting, second))
    environ = {setting.env_name: as_text(second)}
    assert (first, "flag") == loaded(setting, config.parent, {setting.name: first}, **environ)
    assert (first, "flag") == loaded(setting, config.parent, {setting.name: as_text(first)}, **environ)


@EVERY_SETTING
def test_a_flag_that_was_not_given_sets_nothing(setting: Setting, home: Path) -> None:
    """Commands pass on None for the flags that were left out."""
    assert (setting.default, "default") == loaded(setting, home, {setting.name: None})


@EVERY_SETTING
def test_a_value_that_is_not_allowed_is_refused_wherever_it_stands(setting: Setting, config: Path) -> None:
    """The error names the place, the key, the value and what is allowed."""
    home = config.parent
    flag = refusal(home, {setting.name: NOT_ALLOWED})
    assert f'{setting.name} = "{NOT_ALLOWED}" from a flag must be {setting.allowed}.' == flag.message
    variable = refusal(home, **{setting.env_name: NOT_ALLOWED})
    assert f'{setting.env_name} = "{NOT_ALLOWED}" in the environment must be {setting.allowed}.' == variable.message
    config.write_text(toml_line(setting, NOT_ALLOWED))
    file = refusal(home)
    assert f'{setting.name} = "{NOT_ALLOWED}" in {config} must be {setting.allowed}.' == file.message
    assert file.hint == "Correct it with: mlxm config edit"


@EVERY_SETTING
def test_a_setting_is_described(setting: Setting) -> None:
    """Docs, drafts and errors have words for it."""
    assert setting.meaning.endswith(".")
    assert setting.allowed
    assert setting.env_name == "MLXM_" + setting.name.upper().replace(".", "__")


@EVERY_SETTING
def test_a_misspelt_variable_is_told_the_right_name(setting: Setting, home: Path) -> None:
    """Leaving a letter out is the commonest mistake."""
    error = refusal(home, **{setting.env_name[:-1]: "1"})
    assert error.message == (
        f"Unknown setting {setting.env_name[:-1]} in the environment: did you mean {setting.env_name}?"
    )


@EVERY_SETTING
def test_a_misspelt_key_is_told_the_right_name(setting: Setting, config: Path) -> None:
    """The error names the file too."""
    group, _, key = setting.name.rpartition(".")
    config.write_text(f"[{group}]\n{key}x = 1\n")
    assert (
        f"Unknown setting {setting.name}x in {config}: did you mean {setting.name}?" == refusal(config.parent).message
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[servr]\nport = 1", "Unknown setting servr in {config}: did you mean server?"),
        ("port = 1", "Unknown setting port in {config}: did you mean server.port?"),
        ('"server.port" = 1', "Unknown setting server.port in {config}: did you mean server.port?"),
        ("zzz = 1", "Unknown setting zzz in {config}."),
        ("server = 5", "server = 5 in {config} must be a table, [server]."),
        ("[server.port]\na = 1", 'server.port = {{"a": 1}} in {config} must be a whole number from 0 to 65535.'),
        ("server.port = true", "server.port = true in {config} must be a whole number from 0 to 65535."),
        ('server.port = "80"', 'server.port = "80" in {config} must be a whole number from 0 to 65535.'),
        ("server.port = 65536", "server.port = 65536 in {config} must be a whole number from 0 to 65535."),
        ("server.drain_s = inf", "server.drain_s = Infinity in {config} must be a number of seconds, 0 or more."),
        ("server.host = 2025-01-01", 'server.host = "2025-01-01" in {config} must be an address or a host name.'),
        ("prep.memory = 0", "prep.memory = 0 in {config} must be a size such as 512MB, 10MiB or a number of bytes."),
        (f'log.level = "{"x" * 99}"', f'log.level = "{"x" * 79}… in {{config}} must be debug, info, warning or error.'),
    ],
)
def test_a_file_with_a_mistake_is_refused(config: Path, text: str, message: str) -> None:
    """The error says where in the file, what stands there and what should."""
    config.write_text(text)
    assert message.format(config=config) == refusal(config.parent).message


@pytest.mark.parametrize(
    ("text", "line", "column"), [("server.port = = 1", 1, 15), ("# fine\n[server", 2, 8), ("[log]\n[log]", 2, 5)]
)
def test_a_file_that_is_no_toml_is_refused(config: Path, text: str, line: int, column: int) -> None:
    """The error says where the reader stopped, at the end of the file too."""
    config.write_text(text)
    error = refusal(config.parent)
    assert error.message.startswith(f"{config}, line {line}, column {column}: ")
    assert "(at" not in error.message
    assert error.hint == "Correct it with: mlxm config edit"


def test_a_file_that_is_no_text_is_refused(config: Path) -> None:
    """The line and column of the first bad byte are named."""
    config.write_bytes(b"# fine\n# caf\xe9\n")
    assert f"{config}, line 2, column 6: not UTF-8 text." == refusal(config.parent).message


def test_a_file_that_cannot_be_read_is_refused(config: Path) -> None:
    """Silently taking defaults would be worse."""
    config.mkdir()
    assert f"{config} cannot be read: Is a directory." == refusal(config.parent).message


def test_all_mistakes_are_told_at_once(config: Path) -> None:
    """Also those that a higher place hides."""
    config.write_text("[server]\nport = true\nprot = 1\n")
    error = refusal(config.parent, MLXM_SERVER__PORT="80", MLXM_LOG__LEVEL="loud")
    assert error.message.splitlines() == [
        'MLXM_LOG__LEVEL = "loud" in the environment must be debug, info, warning or error.',
        f"server.port = true in {config} must be a whole number from 0 to 65535.",
        f"Unknown setting server.prot in {config}: did you mean server.port?",
    ]
    assert error.hint == "Correct the environment variable, or unset it.\nCorrect it with: mlxm config edit"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("MLXM_SERVER_PORT", "MLXM_SERVER__PORT"),
        ("mlxm_server__port", "MLXM_SERVER__PORT"),
        ("MLXM_HOMES", "MLXM_HOME"),
    ],
)
def test_only_exact_variables_count(home: Path, name: str, near: str) -> None:
    """A variable that looks like ours and is not would be obeyed by nobody."""
    assert f"Unknown setting {name} in the environment: did you mean {near}?" == refusal(home, **{name: "80"}).message


def test_other_variables_are_none_of_our_business(home: Path) -> None:
    """Neither those of other programs nor the shell's completion of ours."""
    settings = load_settings(None, {"MLXM_HOME": str(home), "HF_HOME": "/hf", "_MLXM_COMPLETE": "zsh", "MLX_X": "1"})
    assert settings.server.port == 6596


def test_settings_are_read_from_the_environment_of_the_process(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to pass it in."""
    monkeypatch.setenv("MLXM_HOME", str(home))
    monkeypatch.setenv("MLXM_SERVER__PORT", "7000")
    settings = load_settings()
    assert (settings.server.port, settings.home, settings.config_path) == (7000, home, home / "config.toml")


def test_a_change_counts_at_the_next_load(config: Path) -> None:
    """Nothing is remembered between two loads."""
    environ = {"MLXM_HOME": str(config.parent)}
    config.write_text("server.port = 1\n")
    assert load_settings(environ=environ).server.port == 1
    config.write_text("server.port = 2\n")
    assert load_settings(environ=environ).server.port == 2


@pytest.mark.parametrize(
    ("named", "home"),
    [(None, Path.home() / ".mlxm"), ("~/elsewhere", Path.home() / "elsewhere"), ("here", Path.cwd() / "here")],
)
def test_the_home_is_where_mlxm_home_says(named: str | None, home: Path) -> None:
    """It is absolute, so that a change of folder does not move it."""
    assert home == home_folder({} if named is None else {"MLXM_HOME": named})


def test_an_empty_mlxm_home_is_refused() -> None:
    """It would mean the current folder."""
    with pytest.raises(ConfigInvalid, match="MLXM_HOME is empty"):
        home_folder({"MLXM_HOME": ""})


def test_settings_cannot_be_changed(home: Path) -> None:
    """What was read at the top is the same for everybody below."""
    settings = load_settings(environ={"MLXM_HOME": str(home)})
    with pytest.raises(ValidationError, match="frozen"):
        settings.server.port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        settings.server = settings.server  # type: ignore[misc]


def test_settings_made_by_hand_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `load_settings` reads it."""
    monkeypatch.setenv("SERVER", '{"port": 1}')
    monkeypatch.setenv("MLXM_SERVER__PORT", "1")
    assert Settings().server.port == 6596


def test_an_unknown_flag_is_refused(home: Path) -> None:
    """A command that passes a misspelt name is told so at once."""
    error = refusal(home, {"server.prot": 1})
    assert (error.message, error.hint) == ("There is no setting server.prot.", "Did you mean server.port?")


def test_a_group_is_no_setting() -> None:
    """The error lists what is in it."""
    with pytest.raises(ConfigInvalid, match="log is a group") as caught:
        find_setting("log")
    assert caught.value.hint == "It has log.level, log.format."


def test_a_name_like_no_other_points_to_the_list() -> None:
    """A far-fetched guess would mislead."""
    with pytest.raises(ConfigInvalid) as caught:
        find_setting("zzz")
    assert caught.value.hint == "`mlxm config show` lists all settings."


def field_of(annotation: object, default: object, **more: Any) -> Setting:
    """A setting that mlxm does not have today."""
    model = create_model("Made", __base__=Group, made=(annotation, Field(default=default, **more)))
    return Setting("made.made", model.model_fields["made"])


def test_a_list_is_written_as_json_in_the_environment() -> None:
    """The file has a TOML array, and both mean the same."""
    setting = field_of(tuple[str, ...], ())
    assert setting.accept('["a", "b"]') == setting.accept_typed(["a", "b"]) == ("a", "b")
    assert setting.dump(("a", "b")) == ["a", "b"]


def test_a_switch_is_true_or_false() -> None:
    """Text is read generously, a file strictly."""
    setting = field_of(bool, default=False)
    assert setting.allowed == "true or false"
    assert setting.accept("yes") is True
    with pytest.raises(ValueError, match="bool"):
        setting.accept_typed("yes")


def test_a_field_without_words_is_found_out() -> None:
    """Whoever adds a setting gives it a kind and a description."""
    setting = field_of(int, 1)
    with pytest.raises(TypeError, match="give it one of"):
        _ = setting.allowed
    with pytest.raises(TypeError, match="no description"):
        _ = setting.meaning


def test_the_documented_table_is_up_to_date() -> None:
    """docs/configuration.md says what the models say."""
    command = [sys.executable, "-m", "cogapp", "--check", "--diff", "-I", "docs", "docs/configuration.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (ROOT / "docs/configuration.md").read_text()
    for setting in SETTINGS.values():
        assert f"| `{setting.name}` |" in page
        assert f"| `{setting.env_name}` |" in page
