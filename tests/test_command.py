"""The command `sparsereco` has what the tools have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tool_loader import TOOLS, load_tool

from sparsereco import cli
from sparsereco.commands import main


def test_every_tool_for_users_is_a_verb() -> None:
    tools = {path.stem for path in TOOLS.glob("*.py")} - {"benchmark"}  # which is for developers, in a checkout
    assert set(main.VERBS) - {"completion"} == tools
    for name in tools:
        __import__(f"sparsereco.commands.{name}")
        assert load_tool(name).run is sys.modules[f"sparsereco.commands.{name}"].run


def test_a_verb_gets_the_rest_of_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(main.run, ["display", "infill", "--help"]) == cli.DONE
    assert "tools/display.py infill filled.root" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "message"), [(["no-such-verb"], "no-such-verb"), ([], "verb")])
def test_a_verb_that_is_none(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(main.run, argv) == cli.WRONG_INPUT
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1


def test_help_lists_the_verbs_without_heavy_libraries() -> None:
    code = (
        "import sys\n"
        "from sparsereco.commands import main\n"
        "sys.argv = ['sparsereco', '--help']\n"
        "assert main.main() == 0\n"
        "print({'torch', 'uproot', 'awkward', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert all(name in done.stdout for name in main.VERBS)


def test_every_benchmark_can_be_started() -> None:
    names = sorted(path.stem for path in (TOOLS / "benchmarks").glob("*.py"))
    code = f"import importlib\nfor name in {names}: assert importlib.import_module(f'benchmarks.{{name}}')"
    assert len(names) > 10
    subprocess.run([sys.executable, "-c", code], cwd=TOOLS, check=True, timeout=120)


def test_a_reader_that_has_gone_is_no_error() -> None:
    """As in `sparsereco --help | head -1`, where head may be done first."""
    code = (
        "import sys\n"
        "from sparsereco import cli\n"
        "def run(argv):\n"
        "    sys.stdin.read()\n"  # until the reader has gone
        "    print('much to say')\n"
        "sys.exit(cli.main(run, []))"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == cli.FAILED


def test_it_is_installed_with_the_package() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert '[project.scripts]\nsparsereco = "sparsereco.commands.main:main"\n' in project


@pytest.mark.parametrize(
    ("said", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["nothing", "rounds", "policy"],
)
def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(
    said: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    cli.wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
