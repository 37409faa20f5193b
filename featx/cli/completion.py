"""``featx completion``, and what the Tab key offers: without torch, h5py or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from featx.cli.help import Command

COMPLETE_VARIABLE = "_FEATX_COMPLETE"
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _matching(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    start = incomplete.lower()
    return [CompletionItem(name) for name in names if name.lower().startswith(start)]


def files(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return what lets the shell complete names of files."""
    return [CompletionItem(incomplete, type="file")]


def backbones(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the names of backbones."""
    from featx.backbones.table import backbone_table, short_name

    return _matching(map(short_name, backbone_table()), incomplete)


def weights(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the names of the weights of the backbone that was given, and files."""
    from featx.backbones.table import backbone_table

    name = _backbone(context)
    known = [own for row in backbone_table() if row.name == name for own in row.weights]
    found = _matching(["default", "none", *known], incomplete)
    return [*files(context, parameter, incomplete), *found]


def layers(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the layers of the backbone that was given."""
    from featx.backbones.table import known_layers

    return _matching(["penultimate", *known_layers(_backbone(context))[0]], incomplete)


def cuts(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the cuts of the backbone that was given."""
    from featx.backbones.table import known_layers

    return _matching(["penultimate", *known_layers(_backbone(context))[1]], incomplete)


def _backbone(context: click.Context) -> str:
    from featx.backbones.table import find_backbone

    given = context.params.get("backbone") or "resnet18"
    given = given if isinstance(given, str) else given[-1]
    return find_backbone(given) or given


COMPLETERS: dict[str, Completer] = {
    "backbone": backbones,
    "weights": weights,
    "layer": layers,
    "cut": cuts,
}
"""By the names of options."""


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script for the Tab key in bash, zsh or fish: backbones, layers, options, files.

    \b
    bash  featx completion bash > ~/.local/share/bash-completion/completions/featx
    zsh   featx completion zsh > ~/.zfunc/_featx    with fpath+=~/.zfunc in ~/.zshrc
    fish  featx completion fish > ~/.config/fish/completions/featx.fish

    Make it once; it asks the featx of the environment that is active. bash needs version 4.4.
    """  # noqa: D301 the escape keeps click from re-wrapping the lines
    made = get_completion_class(shell)
    if made is None:  # never: click knows all three
        raise click.UsageError(f"No completion for {shell}.")
    script = ShellComplete.source(made(ctx.find_root().command, {}, "featx", COMPLETE_VARIABLE))
    click.echo(script.encode(), nl=False)
