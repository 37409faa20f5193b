"""How closely other runtimes follow ONNX Runtime on exported files: writes docs/clients.md.

    python benchmarks/clients.py [--data ../shared/data]

A SqueezeNet fine-tuned from ImageNet with a default head on hymenoptera, and `tiny` with the same
images; exported once for each input, and for images of one shape. Validation photos go through
every client and through ONNX Runtime on the same machine. Figures are the largest logit differences
as shares of the largest logit. "resized" are photos that Pillow has resized first, so that the
file's own resize has nothing left to do; for the file of one shape they are brought to that shape.
What a client refuses is printed with its reason. A client that is not installed is left out.
"""

import importlib.util
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import click
import numpy as np
from report import ROOT, table, write_measured

import featx
from featx.classifier.session import Classifier, open_classifier
from featx.images.decode import decode_image
from featx.images.edge_cases import in_shape
from featx.images.preprocess import resized_square

NODE = ROOT / "tests" / "clients"
Client = Callable[[Classifier, Sequence[np.ndarray]], list[np.ndarray]]
"""Gives the logits of each input, flat."""
FILES = {
    "image": featx.ExportOptions(),
    "shape": featx.ExportOptions(image_shape=(375, 500)),
    "crop": featx.ExportOptions(input="crop"),
    "tensor": featx.ExportOptions(input="tensor"),
}


def in_node(classifier: Classifier, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return what onnxruntime-web answers."""
    name = classifier.contract.input_name
    with tempfile.TemporaryDirectory() as folder:
        job = []
        for number, values in enumerate(inputs):
            file = Path(folder) / str(number)
            file.write_bytes(np.ascontiguousarray(values).tobytes())
            dims = list(values.shape)
            job.append({"name": name, "type": str(values.dtype), "dims": dims, "file": str(file)})
        path = Path(folder) / "job.json"
        path.write_text(json.dumps({"model": str(classifier.path), "inputs": job}))
        command = ["node", str(NODE / "run.mjs"), str(path)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [np.array(json.loads(line)["logits"]) for line in lines.splitlines()]


def in_openvino(classifier: Classifier, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return what OpenVINO answers on the CPU, in float32."""
    import openvino

    core = openvino.Core()
    model = core.compile_model(
        core.read_model(classifier.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return [model([values])["logits"].ravel() for values in inputs]


def in_tract(classifier: Classifier, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return what tract answers."""
    import tract

    found = []
    for values in inputs:
        model = tract.onnx().load(str(classifier.path))
        kind = {"uint8": "u8", "float32": "f32"}[str(values.dtype)]
        model.set_input_fact(0, f"{','.join(map(str, values.shape))},{kind}")
        index = classifier.contract.outputs.index("logits")
        found.append(model.into_model().into_runnable().run([values])[index].to_numpy().ravel())
    return found


def in_opencv(classifier: Classifier, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return what OpenCV's dnn answers."""
    import cv2

    network, found = cv2.dnn.readNetFromONNX(str(classifier.path)), []
    for values in inputs:
        network.setInput(values, classifier.contract.input_name)
        found.append(np.ravel(network.forward("logits")))
    return found


def in_onnx2torch(classifier: Classifier, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return what the module answers that onnx2torch makes."""
    import onnx2torch
    import torch

    module = onnx2torch.convert(str(classifier.path)).eval()
    index = classifier.contract.outputs.index("logits")
    with torch.no_grad():
        return [module(torch.from_numpy(values))[index].numpy().ravel() for values in inputs]


def in_reference(classifier: Classifier, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return what the evaluator that comes with ONNX answers."""
    from onnx.reference import ReferenceEvaluator

    evaluator, name = ReferenceEvaluator(str(classifier.path)), classifier.contract.input_name
    return [evaluator.run(["logits"], {name: values})[0].ravel() for values in inputs]


def clients() -> dict[str, Client]:
    """Return those that are installed."""
    found: dict[str, Client] = {}
    if shutil.which("node") and (NODE / "node_modules" / "onnxruntime-web").is_dir():
        version = json.loads((NODE / "package.json").read_text())["dependencies"]["onnxruntime-web"]
        found[f"onnxruntime-web {version}"] = in_node
    for name, module, package, client in (
        ("OpenVINO", "openvino", "openvino", in_openvino),
        ("tract", "tract", "tract", in_tract),
        ("OpenCV", "cv2", "opencv-python-headless", in_opencv),
        ("onnx2torch", "onnx2torch", "onnx2torch", in_onnx2torch),
    ):
        if importlib.util.find_spec(module):
            found[f"{name} {metadata.version(package)}"] = client
    found[f"onnx {metadata.version('onnx')}, reference evaluator"] = in_reference
    return found


def photos(data: Path, count: int) -> list[np.ndarray]:
    """Return validation photos of both classes."""
    found: list[np.ndarray] = []
    for name in ("ants", "bees"):
        paths = sorted((data / "hymenoptera_data" / "val" / name).glob("*.jpg"))[: count // 2]
        found += [decode_image(path.read_bytes(), sample_id=path.name) for path in paths]
    return found


def difference(client: Client, classifier: Classifier, images: Sequence[np.ndarray]) -> str:
    """Return the largest logit difference to ONNX Runtime, as a share of the largest logit."""
    if shape := classifier.contract.image_shape:
        images = [in_shape(image, shape) for image in images]
    inputs = [classifier.prepare(image)[None] for image in images]
    ours = [classifier.logits(values).ravel() for values in inputs]
    try:
        theirs = client(classifier, inputs)
    except Exception as err:  # each client has errors of its own
        print(f"{client.__name__[3:]} refuses {classifier.path.name}: {' '.join(str(err).split())}")
        return "refused"
    largest = max(np.abs(values).max() for values in ours)
    return f"{max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)) / largest:.1e}"


def exported(settings: featx.ExtractOptions, data: Path, folder: Path) -> dict[str, Classifier]:
    """Return a classifier for each of ``FILES``."""
    folder.mkdir()
    featx.extract(data / "hymenoptera_data", folder / "f.h5", settings)
    featx.train_head(folder / "f.h5", folder / "h.safetensors")
    found = {}
    for name, options in FILES.items():
        path = folder / f"{name}.onnx"
        featx.export_onnx(folder / "h.safetensors", path, options)
        found[name] = open_classifier(path)
    return found


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data")
@click.option("--write/--no-write", default=True, help="Put the table into docs/clients.md.")
def main(data: Path, write: bool) -> None:
    """Compare every client and print the table."""
    mango = str(data / "weights" / "squeezenet1_1-mango-c10.pth")
    backbones = {
        "squeezenet1_1": (featx.ExtractOptions(backbone="squeezenet1_1", weights=mango), 24),
        "tiny": (featx.ExtractOptions(backbone="tiny"), 24),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for backbone, (options, count) in backbones.items():
            files = exported(options, data, Path(folder) / backbone)
            images = photos(data, count)
            resized = [resized_square(image, files["image"].preprocess) for image in images]
            for title, client in clients().items():
                if client is in_reference and backbone != "tiny":  # its loops in Python are slow
                    continue
                figures = [
                    difference(client, files["image"], images),
                    difference(client, files["image"], resized),
                    *(difference(client, files[name], images) for name in FILES if name != "image"),
                ]
                rows.append([title, backbone, *figures])
                print(rows[-1], flush=True)
    columns = ("client", "backbone", "any", "any, resized", "one shape", "`crop`", "`tensor`")
    text = table(columns, rows)
    print(text)
    if write:
        write_measured("docs/clients.md", text)


if __name__ == "__main__":
    main()
