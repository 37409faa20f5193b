"""Help texts: whole phrases, groups, examples, an overview of all commands."""

import re
import shlex

import click
import pytest
from commands import featx_cli

from featx.cli import main
from featx.cli.help import EXAMPLES

COMMANDS = tuple(main.commands)
OPTIONS = [
    (name, option)
    for name, command in main.commands.items()
    for option in command.params
    if isinstance(option, click.Option) and not option.hidden
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_by_either_way(command):
    shown = featx_cli(command, "--help")
    assert shown.exit_code == 0
    assert shown.stdout.startswith("Usage: ")
    assert re.search(rf"\nExamples?:\n  featx {command}", shown.stdout)
    assert featx_cli("help", command).stdout == shown.stdout
    assert shown.stdout.isascii() or not re.search("[\\u00a0\\u2011]", shown.stdout)


@pytest.mark.parametrize(("name", "example"), [(n, e) for n in COMMANDS for e in EXAMPLES[n]])
def test_examples_are_valid_usage(name, example):
    program, command, *arguments = shlex.split(example.partition(" > ")[0])
    assert (program, command) == ("featx", name)
    parent = click.Context(main, **main.context_settings)
    main.commands[name].make_context(name, arguments, parent=parent)


def test_options_are_explained_by_phrases():
    bare = [(name, option.name) for name, option in OPTIONS if len((option.help or "").split()) < 2]
    assert set(bare) <= {("train-head", "momentum")}
    assert not [
        option.help for _, option in OPTIONS if (option.help or "").startswith(("Of ", "["))
    ]


def test_long_lists_of_options_are_in_groups():
    for command in ("extract", "train-head", "finetune", "export"):
        assert len(re.findall(r"^[A-Z][\w ]+:$", featx_cli(command, "-h").stdout, re.M)) >= 4
    text = featx_cli("train-head", "-h").stdout
    titles = (
        "\nLinear head:",
        "--solver",
        "\nMLP:",
        "--hidden",
        "\nSGD:",
        "--momentum",
        "\nOutput:",
    )
    positions = [text.index(title) for title in titles]
    assert positions == sorted(positions)


def test_defaults_have_one_form_and_types_plain_names():
    for command in COMMANDS:
        text = featx_cli(command, "-h").stdout
        assert not re.search(r"INTEGER|FLOAT|x>=|\[default: default:", text)
        assert not re.search(r"  \[(?!default:)[^\]|\n]+\]$", text, re.M)


def test_the_overview_has_every_command_with_a_whole_sentence():
    text = featx_cli("--help").stdout
    assert "\n  featx train-head             features → artifacts/head.safetensors\n" in text
    assert "\\b" not in text
    assert "..." not in text.partition("[ARGS]...")[2]
    for command in COMMANDS:
        assert f"\n  {command} " in text
    assert "More:" not in text
    assert featx_cli("help").stdout == text


def test_help_of_an_unknown_command_offers_the_nearest():
    wrong = featx_cli("help", "tran-head")
    assert wrong.exit_code == 2
    assert "train-head" in wrong.stderr
