"""The ``featx`` command: its subcommands, and what happens to errors."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from typing import Any

import click

import featx
from featx.cli.audit import audit
from featx.cli.backbones import backbones
from featx.cli.check import check, status
from featx.cli.compare import compare
from featx.cli.completion import COMPLETE_VARIABLE, completion
from featx.cli.doctor import doctor
from featx.cli.evaluate import evaluate, report
from featx.cli.export import export
from featx.cli.extract import extract
from featx.cli.finetune import finetune
from featx.cli.help import show_help, write_overview
from featx.cli.info import info
from featx.cli.merge import merge
from featx.cli.output import PREFIX, note_flags, with_flags
from featx.cli.page import page
from featx.cli.predict import predict
from featx.cli.push import push
from featx.cli.relabel import relabel
from featx.cli.run import run
from featx.cli.serve import serve
from featx.cli.similar import similar
from featx.cli.streams import safe_streams
from featx.cli.train_head import train_head
from featx.errors import BadImages, FeatxError, printable
from featx.packages import import_problem


class _Group(click.Group):
    """Shows errors in a line, without a traceback, and maps them to exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the flow, not of the alphabet

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_overview(self, formatter)

    def main(self, *args: Any, **settings: Any) -> Any:
        with safe_streams():
            return super().main(*args, **{"complete_var": COMPLETE_VARIABLE, **settings})

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self._invoke(ctx)
        except (KeyboardInterrupt, click.Abort) as stop:
            signum = stop.args[0] if stop.args else signal.SIGINT
            word = "Interrupted." if signum == signal.SIGINT else "Terminated."
            notes = " ".join((word, *getattr(stop, "__notes__", ())))
            click.echo(printable(with_flags(notes)), err=True)
            sys.exit(128 + signum)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as err:  # names of files may stand where options are expected
            text = printable(err.format_message())
            if text.startswith("Got unexpected extra argument"):
                text += ". A name with spaces goes in quotes."
            raise click.UsageError(text, err.ctx) from err
        except FeatxError as err:
            # A list of images is the only text of several lines; it escapes the names itself.
            keep = "\n" if isinstance(err, BadImages) else ""
            text = ctx.meta.get(PREFIX, "") + with_flags(str(err))
            raise click.ClickException(printable(text, keep=keep)) from err
        except ImportError as err:
            if error := import_problem(err):
                raise click.ClickException(str(error)) from err
            raise


class _Notes(logging.Handler):
    """Shows what the library logs, on stderr; the same once where it comes several times."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.capitalize()}: " if record.levelno > logging.INFO else ""
        own = context.meta if (context := click.get_current_context(silent=True)) else {}
        prefix = own.get(PREFIX, "") + prefix
        note = prefix + printable(with_flags(record.getMessage()))
        if note != self.last:
            click.echo(note, err=True)
        self.last = note


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(featx.__version__, "-V", "--version", message="featx %(version)s")
def main() -> None:
    """Image features once, heads in seconds, one ONNX file that proves itself.

    \b
    featx extract photos/        images   → artifacts/features.h5
    featx train-head             features → artifacts/head.safetensors
    featx export                 head     → artifacts/model.onnx
    featx predict holiday.jpg    labels, without torch
    featx run photos/            the first three, as far as needed
    featx finetune               activations → artifacts/tuned.safetensors
    """  # noqa: D301 the escape keeps click from re-wrapping the lines
    # torch's threads spin while they wait for each other; with the cores shared, that makes
    # fitting a head several times slower. It must be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Pillow warns about images that featx reads by its own rules (docs/images.md).
    warnings.filterwarnings("ignore", module=r"PIL\.")
    log = logging.getLogger("featx")
    log.handlers = [_Notes()]
    log.setLevel(logging.INFO)  # --quiet raises it


for command in (
    *(extract, train_head, finetune, export, predict),
    *(run, status),
    *(page, serve, push, audit, relabel, similar, compare, evaluate, report),
    *(check, info, merge, backbones),
    *(doctor, completion, show_help),
):
    main.add_command(command)
    note_flags(command)
