import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxm.cli.main import main

RunMlxm = Callable[..., subprocess.CompletedProcess[str]]

PROGRAM = Path(sys.executable).with_name("mlxm")
SHELLS = {
    "bash": [".bash_completions/mlxm.sh", ".bashrc"],
    "zsh": [".zfunc/_mlxm", ".zshrc"],
    "fish": [".config/fish/completions/mlxm.fish"],
}


def _complete(run_mlxm: RunMlxm, shell: str, line: str) -> list[str]:
    """What the shell is offered for a line with the cursor at its end."""
    env = {"_MLXM_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    env |= {"_TYPER_COMPLETE_ARGS": line, "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    done = run_mlxm(**env)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mlxm conf", ["config"]),
        ("mlxm config s", ["set", "schema", "show"]),
        ("mlxm --ver", ["--version"]),
        ("mlxm doctor --j", ["--json"]),
        ("mlxm completion show z", ["zsh"]),
    ],
)
def test_bash_is_offered_commands_and_options(line: str, offered: list[str], run_mlxm: RunMlxm) -> None:
    """Completion reaches into commands that load when they are named."""
    assert _complete(run_mlxm, "bash", line) == offered


def test_fish_is_offered_the_help_beside_the_name(run_mlxm: RunMlxm) -> None:
    """Fish shows what each command is for."""
    assert _complete(run_mlxm, "fish", "mlxm doc") == ["doctor\tCheck this machine and say what to fix."]


def test_zsh_is_offered_the_help_beside_the_name(run_mlxm: RunMlxm) -> None:
    """So does zsh, in the words of its own protocol."""
    assert _complete(run_mlxm, "zsh", "mlxm doc") == [
        """_arguments '*: :(("doctor":"Check this machine and say what to fix."))'"""
    ]


def test_real_bash_completes_with_the_printed_script(run_mlxm: RunMlxm, user_home: Path) -> None:
    """The script that `show` prints works in the shell it is for."""
    script = run_mlxm("completion", "show", "bash").stdout
    asking = 'COMP_WORDS=(mlxm conf); COMP_CWORD=1; _mlxm_completion "$0"; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{asking}", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=user_home,
    )

    assert done.stdout == "config\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_install_writes_the_script_and_says_which_files(
    shell: str, user_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing changes in a person's home without being named."""
    assert main(["completion", "show", shell]) == 0
    script = capsys.readouterr().out.strip()
    assert main(["completion", "install", shell]) == 0

    printed = capsys.readouterr()
    assert printed.out == "".join(f"wrote {user_home / name}\n" for name in SHELLS[shell])
    assert printed.err == f"Start a new {shell} to use it.\n"
    assert (user_home / SHELLS[shell][0]).read_text().strip() == script
    assert sorted(str(path.relative_to(user_home)) for path in user_home.rglob("*") if path.is_file()) == sorted(
        SHELLS[shell]
    )


def test_install_keeps_what_is_in_the_start_up_file(user_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A person's own lines stay, and the file is said to be changed."""
    (user_home / ".bashrc").write_text("alias ll='ls -l'\n")
    assert main(["completion", "install", "bash"]) == 0

    assert f"changed {user_home / '.bashrc'}\n" in capsys.readouterr().out
    assert (user_home / ".bashrc").read_text().startswith("alias ll='ls -l'\n")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.usefixtures("user_home")
def test_install_again_changes_nothing(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A second installation is harmless and says so."""
    assert main(["completion", "install", shell]) == 0
    capsys.readouterr()
    assert main(["completion", "install", shell]) == 0

    assert capsys.readouterr() == ("", f"Completion for {shell} is already installed.\n")


def test_install_leaves_a_start_up_file_alone_that_is_not_utf8(
    user_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be read whole is not written back."""
    content = "alias caf\xe9=true\n".encode("latin-1")
    (user_home / ".bashrc").write_bytes(content)
    assert main(["completion", "install", "bash"]) == 2

    assert "mlxm completion show bash" in capsys.readouterr().err
    assert (user_home / ".bashrc").read_bytes() == content
    assert not (user_home / ".bash_completions").exists()


def test_install_into_an_unusable_home_says_what_to_do(
    user_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing can be written, the script can still be had."""
    blocked = user_home / "file"
    blocked.touch()
    monkeypatch.setenv("HOME", str(blocked))
    assert main(["completion", "install", "fish"]) == 73

    printed = capsys.readouterr()
    assert "cannot be written: Not a directory." in printed.err
    assert "mlxm completion show fish" in printed.err
