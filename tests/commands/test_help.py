"""Laws of what the command line says of itself: help, version, its words for options, bars that `--quiet` turns off.

pytest tests/commands/test_help.py
"""

import argparse
import inspect
import re
import runpy
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import modeling_lingene
from helpers import BAR, table
from lingene import telling
from lingene.options import named
from modeling_lingene import cli, progress


COMMANDS = {"quickstart", "decompose", "convert", "export", "materialise", "evaluate", "sweep", "profile", "verify"}
COMMANDS |= {"info", "card", "push", "prune", "analyse", "zoo", "app", "recipes"}
LONG = {  # the commands whose work takes a while
    "quickstart": "",
    "decompose": "--data digits --out out",
    "convert": "source --out out",
    "export": "bundle --to onnx --out out",
    "evaluate": "model --data digits",
    "sweep": "bundle --data digits",
    "profile": "bundle",
    "analyse": "trend model --out out",
    "prune": "model --target-macs 0.5 --data digits --out out",
    "push": "bundle org/name",
}


def test_help_lists_every_command_and_each_explains_its_options(lingene):
    """What is not listed is not found; what is listed must be there."""
    listed = lingene("--help")
    assert listed.code == 0
    assert set(re.findall(r"^    (\w+)(?: .*)?$", listed.out, re.MULTILINE)) == COMMANDS
    for command in COMMANDS:
        told = lingene(command, "--help")
        assert told.code == 0 and told.out.startswith(f"usage: lingene {command}")
        bare = re.findall(r"^  (?:-\S+|[A-Z]+)(?: [A-Z_]+)?$", told.out, re.MULTILINE)
        assert [line for line in bare if not re.search(rf"{re.escape(line)}\n {{10}}", told.out)] == []


def test_version_is_that_of_the_package(lingene):
    """What a report of a fault begins with."""
    told = lingene("--version")
    assert (told.code, told.out) == (0, f"modeling_lingene {modeling_lingene.__version__}\n")


# What is said before a command is known, or is known to be wrong.
LIGHT = ["--help", "--version", "fly", "", "info", "info a --deep", "sweep --help", "export B --to onnx --depth six"]
HEAVY = ("torch", "transformers", "modeling_lingene", "numpy")


@pytest.mark.parametrize("line", LIGHT)
def test_help_a_version_and_a_typo_import_nothing_heavy(line):
    """They took eight seconds of CPU, three times `import torch`."""
    code = (
        f"import sys\nfor name in {HEAVY}: sys.modules[name] = None\n"
        "from lingene.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True, timeout=60)
    assert done.returncode == (0 if line.startswith("--") or line.endswith("--help") else 2), done.stderr
    assert "Traceback" not in done.stderr and done.stdout + done.stderr


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_lingene_is_one_program_by_its_three_names(capsys, monkeypatch):
    """The script that is installed, and two modules, since torchrun takes a module; run as one, each does the same."""
    (script,) = entry_points(group="console_scripts", name="lingene")
    assert script.load() is cli.main
    command = [sys.executable, "-m", "lingene", "zoo", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.startswith("usage: lingene zoo")
    monkeypatch.setattr(sys, "argv", ["cli.py", "zoo", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("modeling_lingene.cli", run_name="__main__")
    assert not ended.value.code and capsys.readouterr().out == told


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_takes_what_its_options_give(command):
    """They arrive as keywords; one that nobody takes would end in a traceback."""
    parser = argparse.ArgumentParser()
    for add in cli.COMMANDS[command].options:
        add(parser)
    names = {action.dest for action in parser._actions} - {"help", "quiet"}
    inspect.signature(named(cli.COMMANDS[command].run)).bind(**dict.fromkeys(names))
    assert ("--quiet" in parser.format_help()) == (command in LONG)


@pytest.mark.parametrize("option", ["depth", "num-components", "width-ratio", "allow-untrained", "revision"])
def test_the_options_of_a_size_are_the_same_words_everywhere(lingene, option):
    """The field's name with dashes, as in `from_pretrained`."""
    assert f"--{option}" in lingene("materialise", "--help").out


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_messages_and_help_name_what_can_be_typed(command):
    """`resume` or latency_device=NAME is Python's; the command line has --resume and --latency-device NAME."""
    parser = argparse.ArgumentParser(add_help=False)
    for add in cli.COMMANDS[command].options:
        add(parser)
    flags = telling.flags_of(parser)
    for action in parser._actions:
        typed = telling.in_flags(f"give `{action.dest}`, such as {action.dest}=1/2.", flags)
        if action.option_strings:
            assert typed == f"give `{action.option_strings[0]}`, such as {action.option_strings[0]} 1/2."
        else:
            assert typed.startswith(f"give `{action.metavar or action.dest}`")
    own = cli.build_parser(command)._subparsers._group_actions[0].choices[command]
    words = set(re.findall(r"`(\w+)`", " ".join(str(action.help) for action in own._actions)))
    assert words & {action.dest for action in own._actions if action.option_strings} == set()


def test_a_recipes_values_are_told_in_flags_too(lingene):
    """They take the place of texts that were in flags already."""
    told = lingene("decompose", "--recipe", "digits", "--help").out
    assert "(digits: " in told and "`--init`" in told and not re.search("`(init|stages|full_share)`", told)


def test_an_example_in_a_help_text_can_be_typed(lingene):
    """Names of another library's arguments are not ours: `depth=6` was shown as --depths 6."""
    told = " ".join(lingene("convert", "--help").out.split())
    assert "--model-args depth=6,embed_dim=192,num_heads=3" in told


def test_what_is_no_argument_of_a_command_stays_as_it_was():
    """Fields of files, paths and code have `=` and backticks too."""
    flags = {"depth": "--depth", "out": "--out", "bundle": "BUNDLE", "allow_untrained": "--allow-untrained"}
    for text in ("`weights_id` differs", "in a/depth=6/x", "--model-args depth=6", "bundle=x", "n=3 `config.json`"):
        assert telling.in_flags(text, flags) == text
    assert telling.in_flags("allow_untrained=True, `bundle`.", flags) == "--allow-untrained, `BUNDLE`."


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize("command", LONG)
def test_quiet_turns_the_bars_of_every_long_command_off(monkeypatch, command, quiet):
    """While it runs and no longer; the command itself is not asked to know."""
    seen = []
    module, _, name = cli.COMMANDS[command].run.partition(":")
    monkeypatch.setattr(f"{module}.{name}", lambda **_: seen.append(progress.WANTED.get()))
    assert cli.main([command, *LONG[command].split(), *["--quiet"] * quiet]) == 0
    assert seen == [not quiet] and progress.WANTED.get()


def test_a_quiet_command_prints_its_result_and_nothing_else(digits, capfd):
    """Into a file it would be the bar's lines."""
    pytest.importorskip("sklearn")
    for quiet in (True, False):
        capfd.readouterr()
        assert cli.main(["evaluate", str(digits.plain), "--data", "digits", *["--quiet"] * quiet]) == 0
        printed = capfd.readouterr()
        assert len(table(printed.out)) == 1 and bool(BAR.search(printed.err)) != quiet
        assert "\r" not in printed.err and (printed.err == "") == quiet
