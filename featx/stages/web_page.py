"""Write the page that runs a model in the browser."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from featx.artifact import publish, require_apart, require_replaceable
from featx.artifact.files import is_own
from featx.classifier.hub import local_model
from featx.classifier.session import load_classifier, read_classifier
from featx.errors import ArtifactExists, ConfigError
from featx.reporting.classify import PAGE_NAME, load_runtime, page_files, render_classify

_MAX_SINGLE = 40_000_000


@dataclass(frozen=True)
class WebPage:
    """The result of ``write_web_page``.

    Attributes:
        path: The page, to be opened.
        num_bytes: Of all its files.
        is_single: It is one file, which opens from disk; else a folder, which has to be served.
    """

    path: Path
    num_bytes: int
    is_single: bool


def write_web_page(model: str | Path, output: str | Path, *, single_file: bool = False) -> WebPage:
    """Write a page that runs a model in the browser: images do not leave the device.

    Preprocessing is that of the graph; the page hands it whole pixels. An earlier page of featx
    is replaced.

    Args:
        model: A model that takes whole images, as ``export_onnx`` writes it, or
            hf:USER/NAME[@REVISION].
        output: The folder of the page; of a single file the file.
        single_file: Put model and runtime into one HTML file, which opens from disk.

    Raises:
        ArtifactError: The model cannot be used, or something else lies at the output.
        ConfigError: The model takes something else than images, onnxruntime-web is not here, or
            the single file would be larger than 40 MB.
    """
    runtime = load_runtime()
    model, output = local_model(model), Path(output)
    content = read_classifier(model)
    classifier = load_classifier(content, path=model)
    if single_file:
        require_apart({"the page": output}, {"the model": model})
        exists = require_replaceable(output, "page")
        page = render_classify(classifier, runtime, content=content, files={}).encode("utf-8")
        if len(page) > _MAX_SINGLE:
            raise ConfigError(
                f"one file with '{model}' would have {len(page) / 1e6:.0f} MB, and browsers on "
                f"phones fail above {_MAX_SINGLE / 1e6:.0f} MB. Leave single_file out, for a "
                "folder that is served, or export the model with precision='fp16' or 'int8'."
            )
        publish(output, page, overwrite=exists)
        return WebPage(output, len(page), is_single=True)
    made = page_files(classifier, content, runtime)
    exists = _require_folder(output)
    files = {output / name: own for name, own in made.items()}
    require_apart({f"the page's '{path.name}'": path for path in files}, {"the model": model})
    for path, own in files.items():
        publish(path, own, overwrite=exists)
    return WebPage(output / PAGE_NAME, sum(map(len, files.values())), is_single=False)


def _require_folder(output: Path) -> bool:
    """Return whether the folder has a page of featx; make it where there is none."""
    if os.path.lexists(output) and (not output.is_dir() or any(output.iterdir())):
        if output.is_dir() and is_own(output / PAGE_NAME, "page"):
            return True
        raise ArtifactExists(
            output,
            f"'{output}' is there and is not a page that featx wrote; it is left as it is. "
            "Give another folder.",
        )
    return require_replaceable(output / PAGE_NAME, "page")
