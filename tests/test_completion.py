"""The script of `sparsereco completion bash`, in bash itself."""

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

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "sparsereco.bash"
    path.write_text(completion.script())
    return path


def test_it_is_printed_for_bash_alone(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(main.run, ["completion", "bash"]) == cli.DONE
    assert capsys.readouterr().out == script.read_text() + "\n"
    subprocess.run(["bash", "-n", script], check=True)
    for argv in (["completion", "fish"], ["completion"]):
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
        (["sparsereco", "reco", "vertex", "-o", ""], []),  # names of files
        (["sparsereco", "reco", "vertex", "a"], []),
        (["sparsereco", "no-such-verb", ""], []),
    ],
)
def test_what_is_offered(words: list[str], offered: list[str], script: Path) -> None:
    code = (
        f"set -u; source {script}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _sparsereco; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.split() == offered


def test_the_tab_key(script: Path, tmp_path: Path) -> None:
    """A shell at a terminal, with commands that only say what they were called with."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "reco.py").write_text('#!/bin/sh\necho "tool<$*>"\n')
    (tmp_path / "tools" / "reco.py").chmod(0o755)
    (tmp_path / "some_file.root").touch()
    typed = f'source {script}; sparsereco() {{ echo "command<$*>"; }}\n'
    typed += "sparsereco rec\tver\t--resu\t-o some_f\t\n" + "tools/reco.py inf\t--dete\tx\n"
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], os.environ | {"TERM": "dumb", "HISTFILE": ""})
    os.write(terminal, typed.encode())
    shown, end = "", time.monotonic() + 60
    while "tool<" not in shown.replace("tool<$*", "") and time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 4096).decode()
    os.write(terminal, b"exit\n")
    os.close(terminal)
    os.waitpid(child, 0)
    assert "command<reco vertex --resume -o some_file.root>" in shown
    assert "tool<infill --detector x>" in shown
