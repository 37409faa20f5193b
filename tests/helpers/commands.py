"""Commands of featx in this process."""

from __future__ import annotations

import logging

from click.testing import CliRunner, Result

from featx.cli import main


def featx_cli(*arguments: object) -> Result:
    """Run a command; arguments are turned into text. What --quiet hides is heard again after it."""
    log = logging.getLogger("featx")
    level = log.level
    try:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])
    finally:
        log.setLevel(level)
