"""`sparsereco completion`: a script that has a shell complete commands, options and their choices."""

from __future__ import annotations

import argparse
import importlib

from sparsereco import cli
from sparsereco.commands.main import VERBS

TEXT = """\
Prints a script for a shell: with it, the tab key completes commands, options, and values of options that have choices,
and names of files elsewhere, for `sparsereco` and for `tools/*.py` of a checkout. It takes bash 4.3, zsh 5, fish 3 or
newer; that for zsh goes behind `compinit`.

examples:
  sparsereco completion bash > ~/.sparsereco.bash && echo 'source ~/.sparsereco.bash' >> ~/.bashrc
  sparsereco completion zsh > ~/.sparsereco.zsh && echo 'source ~/.sparsereco.zsh' >> ~/.zshrc
  sparsereco completion fish > ~/.config/fish/conf.d/sparsereco.fish
"""

BASH = """\
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

complete -o default -F _sparsereco sparsereco {names}
"""

ZSH = """\
# Completion of sparsereco for zsh, made by `sparsereco completion zsh`.
# What may follow the words of a command, by these words; nothing is known where names of files come.
typeset -gA _sparsereco_words=(
{words}
)

_sparsereco() {{
  local name=${{words[1]:t}}
  local -a before=("${{(@)words[2,CURRENT-1]}}")
  [[ $name == *.py ]] && before=("${{name%.py}}" "${{(@)before}}")
  local command="${{(j: :)before[1,2]}}" last=${{before[-1]-}}
  local choices="$command $last" known=
  if [[ $last == -* ]] && (( ${{+_sparsereco_words[$choices]}} )); then
    known=$_sparsereco_words[$choices]
  elif (( $#before < 2 )) || [[ $words[CURRENT] == -* ]]; then
    known=${{_sparsereco_words[${{command:-sparsereco}}]-}}
  fi
  compadd -- ${{=known}} || _files
}}

compdef _sparsereco sparsereco {names}
"""

FISH = """\
# Completion of sparsereco for fish, made by `sparsereco completion fish`.
# What may follow the words of a command, by these words; nothing is known where names of files come.
function __sparsereco_words
    switch "$argv"
{words}
        case '*'
            return 1
    end
end

function __sparsereco
    set -l before (commandline -opc)
    set -l word (commandline -ct)
    set -l known
    set -l name (string replace -r '.*/' '' -- $before[1])
    set -e before[1]
    string match -q '*.py' -- $name; and set -p before (string replace '.py' '' -- $name)
    set -l command (string join ' ' -- $before[1..2])
    if string match -q -- '-*' "$before[-1]"; and set known (__sparsereco_words "$command $before[-1]")
    else if test (count $before) -lt 2; or string match -q -- '-*' "$word"
        test -n "$command"; or set command sparsereco
        set known (__sparsereco_words "$command")
    end
    if set -q known[1]
        printf '%s\\n' $known
    else
        __fish_complete_path "$word"
    end
end

complete -c sparsereco -f -a '(__sparsereco)'
for tool in {names}
    complete -p "*/$tool" -f -a '(__sparsereco)'
end
"""

SHELLS = {
    "bash": (BASH, '  ["{before}"]="{after}"'),
    "zsh": (ZSH, '  "{before}" "{after}"'),
    "fish": (FISH, '        case "{before}"\n            string split -n " " -- "{after}"; true'),
}
"""The script for each shell, and a line of its table."""


def run(argv: list[str]) -> None:
    """Prints the script; takes some seconds, because all commands are asked for their options."""
    parser = cli.new_parser(TEXT)
    parser.add_argument("shell", choices=list(SHELLS), help="the shell that it is for")
    print(script(parser.parse_args(argv).shell), end="")


def script(shell: str) -> str:
    """The script for a shell."""
    text, line = SHELLS[shell]
    lines = [line.format(before=before, after=" ".join(after)) for before, after in words().items()]
    folders = ["tools/"] if shell == "fish" else ["tools/", "./tools/"]  # fish goes by the end of the whole path
    tools = [f"{folder}{verb}.py" for verb in VERBS if verb != "completion" for folder in folders]
    return text.format(words="\n".join(lines), names=" ".join(tools))


def words() -> dict[str, list[str]]:
    """What may follow the words of a command, by these words."""
    found = {"sparsereco": list(VERBS), "completion": list(SHELLS)}
    for verb in VERBS:
        if verb != "completion":
            commands = importlib.import_module(f"sparsereco.commands.{verb}").COMMANDS
            found[verb] = list(commands)
            for name, command in commands.items():
                found |= options(f"{verb} {name}", command.parser())
    return found


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
