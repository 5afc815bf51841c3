"""`sparsereco completion`: a script that has bash complete commands, options and their choices."""

from __future__ import annotations

import argparse
import importlib

from sparsereco import cli

TEXT = """\
Prints a script for bash: with it, the tab key completes commands, options, and values of options that have choices,
and names of files elsewhere, for `sparsereco` and for `tools/*.py` of a checkout. It takes bash 4.3 or newer.

example:
  sparsereco completion bash > ~/.sparsereco.bash && echo 'source ~/.sparsereco.bash' >> ~/.bashrc
"""

SCRIPT = """\
# Completion of sparsereco for bash, made by `sparsereco completion bash`.
# What may follow the words of a command, by these words; nothing is known where names of files come.
declare -gA _sparsereco_words=(
{words}
)

_sparsereco() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} name=${{COMP_WORDS[0]##*/}} known=
  local before=("${{COMP_WORDS[@]:1:COMP_CWORD-1}}")
  [[ $name == *.py ]] && before=("${{name%.py}}" "${{before[@]}}")
  local command="${{before[*]:0:2}}" last=${{before[*]: -1}}
  if [[ $last == -* && -v _sparsereco_words["$command $last"] ]]; then
    known=${{_sparsereco_words["$command $last"]}}
  elif ((${{#before[@]}} < 2)) || [[ $word == -* ]]; then
    known=${{_sparsereco_words["${{command:-sparsereco}}"]-}}
  fi
  mapfile -t COMPREPLY < <(compgen -W "$known" -- "$word")
}}

complete -o default -F _sparsereco {names}
"""


def run(argv: list[str]) -> None:
    """Prints the script; takes some seconds, because all commands are asked for their options."""
    parser = cli.new_parser(TEXT)
    parser.add_argument("shell", choices=["bash"], help="the shell that it is for")
    parser.parse_args(argv)
    print(script())


def script() -> str:
    """The script for bash."""
    from sparsereco.commands.main import VERBS

    words = {"sparsereco": list(VERBS), "completion": ["bash"]}
    tools = [verb for verb in VERBS if verb != "completion"]
    for verb in tools:
        commands = importlib.import_module(f"sparsereco.commands.{verb}").COMMANDS
        words[verb] = list(commands)
        for name, command in commands.items():
            words |= options(f"{verb} {name}", command.parser())
    lines = [f'  ["{before}"]="{" ".join(after)}"' for before, after in words.items()]
    names = ["sparsereco", *(f"{folder}{tool}.py" for tool in tools for folder in ("tools/", "./tools/"))]
    return SCRIPT.format(words="\n".join(lines), names=" ".join(names))


def options(command: str, parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """The options of a command, by its words, and the choices of each option that takes a value."""
    shown = [action for action in parser._actions if action.option_strings and action.help != argparse.SUPPRESS]
    found = {command: [name for action in shown for name in action.option_strings]}
    for action in shown:
        if action.nargs != 0:
            metavar = action.metavar if isinstance(action.metavar, str) and action.metavar.startswith("{") else ""
            choices = list(action.choices or metavar.strip("{}").split(","))
            found |= {f"{command} {name}": choices for name in action.option_strings}
    return found
