"""The README does what it says: its commands run on small samples, in order, its code after them; all others parse."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import uproot
from conftest import ROOT
from tool_loader import load_tool

from sparsereco import cli
from sparsereco.io import HITS, read

TEXT = (ROOT / "README.md").read_text()
DEMO = ROOT / "tests" / "data" / "demo.root"
LONG = ("benchmark.py", "train.py", "simulate.py bank", "banks/", "bench.root")
"""Words of commands that take minutes, or files that such a command makes."""


def commands(text: str) -> Iterator[list[str]]:
    """The words of the tools' commands in indented blocks, without the folder."""
    for line in re.findall(r"^    (tools/.*)$", text, re.M):
        for command in line.split("#")[0].split("&&"):
            yield shlex.split(command.strip().removeprefix("tools/"))


def test_every_command_parses() -> None:
    found = list(commands(TEXT))
    assert len(found) > 20
    for tool, *words in found:
        if tool == "benchmark.py":
            load_tool("benchmark").parsers().parse_args(words)
        else:
            verb = importlib.import_module(f"sparsereco.commands.{tool.removesuffix('.py')}")
            verb.COMMANDS[words[0]].parser().parse_args(words[1:])


def test_commands_and_code_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copy(DEMO, "run7.root")
    hits = read(str(DEMO), HITS)[:20]
    with uproot.recreate("other.root") as file:
        file["tree"] = {name if name != "hit_pe" else "charge": hits[name] for name in hits.fields}
    # One block after the other, as they stand; each may write what another has written.
    short = [words for words in commands(TEXT) if not any(word in " ".join(words) for word in LONG)]
    assert len(short) > 12
    for tool, *words in short:
        few = {"-n": "40" if "vertex" in words else "3"}
        words = [few.get(before, word) for before, word in zip(["", *words], words, strict=False)]
        if "--workers" in words:
            words[words.index("--workers") + 1] = "2"
        force = [] if "--check" in words else ["-f"]
        code = cli.main(load_tool(tool.removesuffix(".py")).run, [*words, *force])
        assert code == cli.DONE, f"{tool} {' '.join(words)}"
    blocks = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
    assert len(blocks) == 2
    for code in blocks:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout
