"""``featx serve``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from featx.cli import options
from featx.cli.head_text import describe_classes
from featx.cli.help import Command
from featx.cli.output import print_fields, proof_fields, with_flags

log = logging.getLogger(__name__)


@click.command(cls=Command)
@click.argument("model", type=options.FILE, default=options.MODEL, required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=int, default=8000, show_default=True, help="TCP port; 0 takes a free one."
)
@click.option("--name", help="Name of the model in addresses below /v2/models/.  [the file's]")
@click.option(
    "--workers", type=int, default=1, show_default=True, help="Processes that have the model."
)
@click.option("--threads", type=int, help="Threads of each worker.  [its share of the cores]")
@click.option(
    "--max-body",
    type=click.FloatRange(min=0, min_open=True),
    default=20,
    show_default=True,
    metavar="MB",
    help="Longest body of a request.",
)
@click.option(
    "--max-pixels",
    type=int,
    metavar="NUMBER",
    help="Height times width of the largest image.  [50,000,000]",
)
@click.option(
    "--queue",
    type=int,
    default=64,
    show_default=True,
    help="Images that may wait in a worker; above that requests are refused with 503.",
)
@click.option(
    "--timeout",
    type=float,
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="How long a request may wait for its answer.",
)
@click.option(
    "--grace",
    type=float,
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="For requests under way when the server is stopped.",
)
@click.option("--token-file", type=options.FILE, help="Let in only who brings the token in it.")
def serve(
    model: Path,
    name: str | None,
    threads: int | None,
    max_body: float,
    max_pixels: int | None,
    token_file: Path | None,
    **settings: Any,
) -> None:
    """Answer over HTTP with MODEL: a page, POST /predict, and the Open Inference Protocol.

    Ctrl-C or SIGTERM ends it when the requests under way are answered; SIGHUP takes the model that
    then lies at the same path.
    """
    from featx.classifier.hub import model_name
    from featx.images.reading import num_cores
    from featx.serving.options import MAX_PIXELS, ServeOptions, read_token
    from featx.serving.supervisor import serve as serve_model

    chosen = ServeOptions(
        name=name or model_name(model),
        threads=max(1, num_cores() // max(1, settings["workers"])) if threads is None else threads,
        max_bytes=round(max_body * 1e6),
        max_pixels=MAX_PIXELS if max_pixels is None else max_pixels,
        token=None if token_file is None else read_token(token_file),
        **settings,
    )

    def show(address: str, about: Mapping[str, Any]) -> None:
        _show(model, chosen.name, address, about)
        if chosen.token is None and chosen.host not in ("127.0.0.1", "::1", "localhost"):
            log.warning("Whoever reaches this address may use it; see --token-file.")

    serve_model(model, chosen, ready=show)


def _show(model: Path, name: str, address: str, about: Mapping[str, Any]) -> None:
    """Print what is served, with its proof and licence, and where."""
    from featx.heads.tasks import TASKS

    task, licence, no_page = TASKS[about["task"]], about["licence"], about["no_page"]
    print_fields(
        {
            "model": f"{model}  (sha256 {about['sha256'][:16]}…)",
            task.outputs: describe_classes(about["classes"]),
            "backbone": about["backbone"],
            **proof_fields(about["proof"]),
            "licence": licence if licence else "of the weights: not recorded",
            "page": f"none: {with_flags(no_page)}" if no_page else f"{address}/",
            "answers": f"POST {address}/predict",
            "protocol": f"{address}/v2/models/{name}",
            "metrics": f"{address}/metrics",
            "stop": "Ctrl-C",
        }
    )
