"""Commands of featx in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from featx.cli import main


def featx_cli(*arguments: object) -> Result:
    """Run a command; arguments are turned into text."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])
