"""The scripts of `sparsereco completion`, each in its shell."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from sparsereco import cli
from sparsereco.commands import completion, main

COMPLETE = {
    "bash": 'COMP_WORDS=({words}); COMP_CWORD={last}; set -u; _sparsereco; printf "%s\\n" "${{COMPREPLY[@]}}"',
    "zsh": "words=({words}); CURRENT={last}+1; PREFIX=$words[CURRENT]; setopt no_unset; _sparsereco",
    "fish": "complete -C {line}",
}
"""Has a shell say what it offers after some words; zsh with stand-ins for the parts of its completion."""
ZSH = 'compdef() {}; _files() {}; compadd() { shift; print -l -- "${(@M)@:#$PREFIX*}"; (( ${#${(@M)@:#$PREFIX*}} )) }; '
START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}


@pytest.fixture(scope="module", params=completion.SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"there is no {request.param}: apt-get install {request.param}")
    return str(request.param)


@pytest.fixture(scope="module")
def script(shell: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / f"sparsereco.{shell}"
    path.write_text(completion.script(shell))
    return path


def test_it_is_printed(shell: str, script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(main.run, ["completion", shell]) == cli.DONE
    assert capsys.readouterr().out == script.read_text()
    subprocess.run([shell, "-n", script], check=True)


@pytest.mark.parametrize("argv", [["completion", "tcsh"], ["completion"]])
def test_shells_that_are_none(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(main.run, argv) == cli.WRONG_INPUT
    assert "shell" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["sparsereco", ""], list(main.VERBS)),
        (["sparsereco", "re"], ["reco"]),
        (["sparsereco", "convert", ""], ["csv", "edepsim", "larcv"]),
        (["tools/reco.py", ""], ["vertex", "infill", "camera"]),
        (["sparsereco", "reco", "camera", "--selector", ""], ["unet", "gaussian", "nsigma", "anomaly"]),
        (["sparsereco", "reco", "vertex", "--decomposer.light_nuclei", "t"], ["true"]),
        (["sparsereco", "reco", "vertex", "--refine", "--no-r"], ["--no-refine"]),
        (["./tools/reco.py", "infill", "a.root", "-q", "--det"], ["--detector"]),
        (["sparsereco", "display", "camera", "-f", "--ped"], ["--pedestal"]),
        (["sparsereco", "reco", "vertex", "-o", ""], []),  # names of files, of which there are none
        (["sparsereco", "reco", "vertex", "a"], []),
        (["sparsereco", "no-such-verb", ""], []),
    ],
)
def test_what_is_offered(words: list[str], offered: list[str], shell: str, script: Path, tmp_path: Path) -> None:
    if words[0].endswith(".py"):  # fish asks for the whole path
        (tmp_path / words[0]).parent.mkdir()
        (tmp_path / words[0]).touch(0o755)
    place = {"words": shlex.join(words), "last": len(words) - 1, "line": shlex.quote(" ".join(words))}
    code = f"{ZSH if shell == 'zsh' else ''}source {script}; {COMPLETE[shell].format(**place)}"
    options = {"zsh": ["-f"], "fish": ["--no-config"]}.get(shell, [])
    done = subprocess.run([shell, *options, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stderr == ""
    assert sorted(done.stdout.split()) == sorted(offered)


def test_the_tab_key(shell: str, script: Path, tmp_path: Path) -> None:
    """A shell at a terminal, with commands that only say what they were called with."""
    for command, says in ((tmp_path / "sparsereco", "command"), (tmp_path / "tools" / "reco.py", "tool")):
        command.parent.mkdir(exist_ok=True)
        command.write_text(f'#!/bin/sh\necho "{says}<$*>"\n')
        command.chmod(0o755)
    (tmp_path / "some_file.root").touch()
    ready = "autoload -U compinit; compinit -D; " if shell == "zsh" else ""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        environment = {
            "TERM": "dumb",
            "HISTFILE": "",
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
        }
        os.execvpe(shell, START[shell], os.environ | environment)
    shown = ""

    def type_in(text: str, answer: str) -> None:
        """Types a line, and waits for what it prints."""
        nonlocal shown
        os.write(terminal, text.encode())
        end = time.monotonic() + 60
        while answer not in shown and time.monotonic() < end:
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 4096).decode()

    type_in(f"{ready}source {script}; echo rea''dy\n", "ready")
    type_in("sparsereco rec\tver\t--resu\t-o some_f\t\n", "command<reco")
    type_in("tools/reco.py inf\t--dete\tx\n", "tool<infill")
    os.write(terminal, b"exit\n")
    os.close(terminal)
    os.waitpid(child, 0)
    assert "command<reco vertex --resume -o some_file.root>" in shown
    assert "tool<infill --detector x>" in shown
