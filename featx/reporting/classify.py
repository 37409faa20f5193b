"""The page that runs a model in the browser, by onnxruntime-web.

Source: https://onnxruntime.ai/docs/tutorials/web/, its build for WebAssembly alone.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from featx.artifact import PAGE_SIGN
from featx.classifier.session import Classifier
from featx.errors import ConfigError, counted
from featx.reporting.templates import render

PAGE_NAME = "index.html"
_MAX_PIXELS = 50_000_000
_EXPORT = re.compile(r"export\{([^}]*)\};?\s*(//# sourceMappingURL=\S*\s*)?$")
_NAMES = ("InferenceSession", "Tensor", "env")


@dataclass(frozen=True)
class Runtime:
    """onnxruntime-web: its script, as one that defines ``ort``, and its WebAssembly."""

    script: str
    wasm: bytes


def load_runtime() -> Runtime:
    """Return the onnxruntime-web that is part of the package.

    Raises:
        ConfigError: It is not there, as in a source tree where ``make web`` has not run.
    """
    folder = resources.files("featx.reporting") / "web"
    try:
        script = (folder / "ort.mjs").read_text("utf-8")
        wasm = (folder / "ort.wasm").read_bytes()
    except OSError as err:
        raise ConfigError(
            "onnxruntime-web, which runs a model in the browser, is not part of this installation: "
            "run 'make web' in the source tree (it needs npm), or install a wheel of featx."
        ) from err
    return Runtime(_as_object(script), wasm)


def _as_object(module: str) -> str:
    """Turn the exports of an ES module into an object, so that it can stand in a page."""
    match = _EXPORT.search(module)
    pairs = [each.split(" as ") for each in match[1].split(",")] if match else []
    names = {public: own for own, public in (pair for pair in pairs if len(pair) == 2)}
    if match is None or "</script" in module or not {*_NAMES} <= {*names}:
        raise ConfigError("onnxruntime-web has another form than this version of featx knows.")
    members = ", ".join(f"{name}: {names[name]}" for name in _NAMES)
    return f"{module[: match.start()]}\nconst ort = {{ {members} }};"


def render_classify(
    model: Classifier, runtime: Runtime, *, content: bytes | None = None, files: Mapping[str, str]
) -> str:
    """Return the HTML of the page of a model.

    Args:
        model: The opened model.
        runtime: What runs it.
        content: The model's bytes, to be put into the page with the runtime; None: it fetches both.
        files: Names of the files beside the page, ``model`` and ``wasm``, where it fetches them.

    Raises:
        ConfigError: The model does not take whole images, or gives no scores of its classes.
    """
    output = _output_of(model)
    outputs = counted(len(model.classes), model.task.output, model.task.outputs)
    data = {
        "classes": model.classes,
        "task": model.task.name,
        "output": output,
        "thresholds": model.thresholds,
        "max_pixels": _MAX_PIXELS,
        "files": files,
    }
    parts = {} if content is None else {"wasm": _packed(runtime.wasm), "model": _packed(content)}
    return render(
        "classify.html",
        {
            "sign": PAGE_SIGN,
            "title": _title(model),
            "about": f"A model of {outputs}.",
            "facts": list(_facts(model)),
            "data": json.dumps(data, ensure_ascii=True).replace("<", "\\u003c"),
            "parts": parts,
            "runtime": runtime.script,
        },
    )


def page_files(model: Classifier, content: bytes, runtime: Runtime) -> dict[str, bytes]:
    """Return the files of a page that is served, by name: what it fetches first, itself last.

    Args:
        model: The opened model, and ``content`` its bytes.
        content: As above.
        runtime: What runs it.

    Raises:
        ConfigError: As ``render_classify``.
    """
    names = {"model": "model.onnx", "wasm": "ort.wasm"}
    page = render_classify(model, runtime, files=names).encode("utf-8")
    return {names["model"]: content, names["wasm"]: runtime.wasm, PAGE_NAME: page}


def _output_of(model: Classifier) -> str:
    """Return the output that the page shows."""
    if model.contract.input != "image":
        raise ConfigError(
            f"'{model.path}' takes '{model.contract.input}'; a page needs a model that takes whole "
            "images. Export it with input='image', the default."
        )
    if model.contract.image_shape or (model.contract.batch or 1) > 1:
        raise ConfigError(
            f"'{model.path}' was exported for images of one shape or for several at once; a page "
            "needs a model that takes one image of any shape. Export it without image_shape=… and "
            "batch=…."
        )
    wanted = ("values",) if model.task.name == "regression" else ("probabilities", "logits")
    for name in wanted:
        if name in model.contract.outputs:
            return name
    raise ConfigError(
        f"'{model.path}' gives {', '.join(model.contract.outputs)}; a page needs "
        f"{' or '.join(wanted)}. Export it with outputs=({wanted[0]!r},)."
    )


def _title(model: Classifier) -> str:
    names = model.classes
    if model.task.name == "single-label" and len(names) <= 3 and sum(map(len, names)) <= 40:
        return f"{', '.join(names[:-1])} or {names[-1]}?" if len(names) > 1 else f"{names[0]}?"
    return f"{counted(len(names), model.task.output, model.task.outputs).capitalize()}"


def _facts(model: Classifier) -> Iterable[tuple[str, str]]:
    details: Mapping[str, Any] = model.header.details
    spec = model.header.spec
    yield "backbone", f"{spec['backbone']}, {spec['preprocess']['image_size']} pixels"
    proof = details.get("proof")
    if proof:
        accuracy = proof.get("accuracy") or {}
        if isinstance(accuracy.get("file"), float):
            yield "validation", f"{accuracy['file']:.4f} through the file"
        yield "proof", f"compared with its head on {proof.get('num_images', 'real')} images"
    else:
        yield "proof", "none: it was exported without comparing it with its head"
    if licence := details.get("licence"):
        yield "licence of the weights", licence if isinstance(licence, str) else str(licence)
    yield "classes", ", ".join(model.classes[:100]) + (" …" if len(model.classes) > 100 else "")
    yield "model", f"sha256 of its head {details.get('head_sha256', '')[:16]}…"
    yield "runs by", "onnxruntime-web (MIT), one thread, in this page"


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode("ascii")
