"""Record what featx gives for fixed inputs, and compare two records.

    python tools/golden.py record before/     # with one version of the library
    python tools/golden.py record after/      # with another
    python tools/golden.py compare before/ after/

A record holds the columns of feature files (whole bytes for ``digits:``), the bytes of exported
models, the logits of every task, solver and memory regime, and what the commands print. Times,
versions and paths are left out of the text. Only public names and commands are used, so that a
record can be made with any version. ``compare`` prints a line for each entry and exits with 1 where
logits differ by more than 1e-3 of the largest, a top class differs, or anything else is not equal.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

import featx

LOGITS = 1e-3
"""Share of the largest logit that two versions may differ by."""
FEATURES = 1e-6
SMALL = "300kB"
"""Memory for which features of the sources below are read in blocks."""
SHORT = featx.MLPOptions(hidden=(32,), max_epochs=8)
HEADS: dict[str, dict[str, dict[str, Any]]] = {
    "classes": {
        **{name: {"solver": name} for name in ("lbfgs", "sklearn", "ridge", "centroid", "sgd")},
        "mlp": {"head": "mlp", "mlp": SHORT},
        "balanced": {"class_weight": "balanced"},
        "one strength": {"strengths": (0.1,)},
    },
    "tags": {"lbfgs": {}, "mlp": {"head": "mlp", "mlp": SHORT}},
    "numbers": {
        "ridge": {"task": "regression"},
        "mlp": {"task": "regression", "head": "mlp", "mlp": SHORT},
    },
}
IN_BLOCKS = ("lbfgs", "ridge", "centroid", "sgd", "mlp")


def main() -> None:
    """Record or compare."""
    match sys.argv[1:]:
        case ["record", folder]:
            record(Path(folder))
        case ["compare", before, after]:
            sys.exit(not compare(Path(before), Path(after)))
        case _:
            sys.exit(__doc__)


def record(out: Path) -> None:
    """Write logits to ``logits.npz`` and everything else to ``golden.json``."""
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, str] = {}
    logits: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for source in sources(home):
            features = home / f"{source}.h5"
            uri = "digits:" if source == "digits" else str(home / source_of(source))
            options = featx.ExtractOptions(backbone="tiny", max_pixels=10**7)
            featx.extract(uri, features, options)
            for column, digest in columns(features):
                found[f"{source}: {column}"] = digest
            with h5py.File(features) as file:
                logits[f"features of {source}"] = file["features"][:]
            if source == "digits":
                found["digits: whole file"] = sha256(features.read_bytes())
            for name, given in heads(source):
                head = home / f"{source}-{name}.safetensors".replace(" ", "-")
                trained = featx.train_head(features, head, given).head
                logits[f"{source}, {name}"] = trained.logits(featx.open_features(features).features)
                found[f"{source}, {name}: chosen"] = str(chosen(trained.header.details["choice"]))
        found |= exported(home)
        found |= printed(home)
    np.savez_compressed(out / "logits.npz", **logits)
    (out / "golden.json").write_text(json.dumps(found, indent=1, ensure_ascii=False))


def sources(home: Path) -> Iterator[str]:
    """Yield the names of sources, made on the way."""
    yield "digits"
    random = np.random.default_rng(0)
    tags, numbers = ["path,label"], ["path,label"]
    for number in range(360):
        level = random.integers(0, 256, 3)
        noise = random.normal(0, 30, (34 + number % 7, 40, 3))
        image = Image.fromarray(np.clip(level + noise, 0, 255).astype(np.uint8))
        mode = ("RGB", "L", "P", "CMYK")[number % 4]
        suffix = "png" if mode == "P" else ("jpg", "tif", "jpg")[number % 3]
        path = home / "photos" / f"c{int(level[0]) // 86}" / f"{number:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.convert(mode).save(path)
        own = [name for name, value in zip("rgb", level, strict=True) if value > 120]
        tags.append(f"{path.relative_to(home)},{'|'.join(own) or '|'}")
        numbers.append(f"{path.relative_to(home)},{int(level.sum()) / 10}")
    (home / "tags.csv").write_text("\n".join(tags))
    (home / "numbers.csv").write_text("\n".join(numbers))
    yield from ("photos", "tags", "numbers")


def source_of(source: str) -> str:
    """Return the file or folder of a source."""
    return source if source == "photos" else f"{source}.csv"


def heads(source: str) -> Iterator[tuple[str, featx.TrainOptions]]:
    """Yield a name and the options of each head that is trained on a source."""
    kind = "classes" if source in ("digits", "photos") else source
    for name, given in HEADS[kind].items():
        if source == "digits" and name not in ("lbfgs", "mlp"):
            continue
        yield name, featx.TrainOptions(**given)
        if source != "digits" and name in IN_BLOCKS:
            yield f"{name} in blocks", featx.TrainOptions(**given, memory=SMALL)
    if source == "photos":
        few = featx.FewShot(shots=5, repeats=2)
        yield "few shot", featx.TrainOptions(few_shot=few)


def chosen(choice: dict[str, Any]) -> Any:
    """Return what selection has chosen."""
    return choice.get("strength") or choice.get("num_epochs") or choice.get("solver")


def columns(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each column of a feature file but the stamps and the features, with its sha256."""
    with h5py.File(path) as file:
        for name in sorted(file):
            if name not in ("stamps", "features"):
                yield name, sha256(file[name][:].tobytes())


def exported(home: Path) -> dict[str, str]:
    """Return the sha256 of models exported in several ways."""
    found = {}
    ways: dict[str, dict[str, Any]] = {
        "default": {},
        "crop, features": {"input": "crop", "outputs": ("logits", "features")},
        "fp16": {"precision": "fp16", "max_drop": 100},
        "int8": {"precision": "int8", "max_drop": 100},
    }
    for source in ("digits-lbfgs", "digits-mlp", "photos-lbfgs", "tags-lbfgs", "numbers-ridge"):
        for name, given in ways.items():
            if name != "default" and source != "digits-lbfgs":
                continue
            model = home / f"{source}-{name.split(',')[0]}.onnx"
            featx.export_onnx(home / f"{source}.safetensors", model, featx.ExportOptions(**given))
            found[f"model of {source}, {name}"] = sha256(without_header(model.read_bytes()))
    return found


def without_header(content: bytes) -> bytes:
    """Return a model's content without its metadata, which holds versions, dates and paths."""
    import onnx

    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    return model.SerializeToString(deterministic=True)


def printed(home: Path) -> dict[str, str]:
    """Return what commands print, without what differs from run to run."""
    image = sorted((home / "photos").rglob("*.jpg"))[0]
    model = home / "photos-lbfgs-default.onnx"
    commands: list[list[object]] = [
        ["extract", home / "photos", "-o", home / "photos.h5"],
        ["train-head", home / "photos.h5", "-o", home / "cli.safetensors", "--per-class"],
        ["export", home / "cli.safetensors", "--onnx", home / "cli.onnx"],
        *(["predict", model, image, "--format", kind] for kind in ("table", "json", "csv")),
        ["predict", home / "tags-lbfgs-default.onnx", image, "--format", "csv"],
        ["predict", home / "numbers-ridge-default.onnx", image],
        ["evaluate", model, home / "photos"],
        ["info", home / "photos.h5"],
        ["info", home / "photos-lbfgs.safetensors"],
        ["info", model],
        ["check", home / "photos.h5"],
        ["check", model, home / "photos"],
    ]
    found = {}
    for command in commands:
        words = [str(word).replace(str(home) + "/", "") for word in command]
        run = subprocess.run(
            [sys.executable, "-m", "featx", *map(str, command)],
            capture_output=True,
            text=True,
            check=False,
        )
        text = f"exit {run.returncode}\n{run.stdout}{run.stderr}".replace(str(home), "HOME")
        found[f"$ featx {' '.join(words)}"] = steady(text)
    return found


def steady(text: str) -> str:
    """Return a command's output without times, sizes and versions."""
    text = re.sub(
        r"^(time|environment|torch|versions?|date|proven) .*$", r"\1 …", text, flags=re.MULTILINE
    )
    text = re.sub(r"\b\d+\.\d+e[-+]\d+\b", "…", text)
    text = re.sub(r"\d+(\.\d+)? (s|ms|MB|kB|images/s)\b", r"… \2", text)
    return re.sub(r"\b[0-9a-f]{12,64}\b", "…", text)


def sha256(content: bytes) -> str:
    """Return 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def compare(before: Path, after: Path) -> bool:
    """Print a line for each entry; return whether all are as they should be."""
    fine = True
    old, new = (json.loads((folder / "golden.json").read_text()) for folder in (before, after))
    for name in sorted(old.keys() | new.keys()):
        same = old.get(name) == new.get(name)
        fine &= same
        if not same:
            print(f"DIFFERS  {name}\n  before {old.get(name)}\n  after  {new.get(name)}")
    print(f"{sum(old.get(name) == value for name, value in new.items())} of {len(old)} texts equal")
    first, second = (np.load(folder / "logits.npz") for folder in (before, after))
    for name in sorted(set(first.files) | set(second.files)):
        if name not in first.files or name not in second.files:
            print(f"MISSING  {name}")
            fine = False
            continue
        fine &= close(name, first[name], second[name])
    return fine


def close(name: str, old: np.ndarray, new: np.ndarray) -> bool:
    """Print how far two arrays are apart; return whether that is allowed."""
    if old.shape != new.shape:
        print(f"DIFFERS  {name}: shapes {old.shape} and {new.shape}")
        return False
    if (old == new).all():
        print(f"equal    {name}")
        return True
    share = float(np.abs(old - new).max() / max(1e-30, np.abs(old).max()))
    tops = int((old.argmax(axis=1) != new.argmax(axis=1)).sum()) if old.shape[1] > 1 else 0
    is_features = name.startswith("features")
    allowed = share <= (FEATURES if is_features else LOGITS) and (is_features or not tops)
    print(f"{'close' if allowed else 'DIFFERS'}    {name}: {share:.1e} of the largest, {tops} tops")
    return allowed


if __name__ == "__main__":
    main()
