"""How to use an exported file without featx: code that follows its contract."""

from __future__ import annotations

import json

from featx.classifier.contract import Contract
from featx.images.preprocess import PreprocessSpec


def snippets(model: str, contract: Contract, spec: PreprocessSpec) -> dict[str, str]:
    """Return Markdown blocks of code: Python, JavaScript and C#.

    Each is a whole program that takes the path of an image and prints the file's outputs. What the
    file does not do itself, the Python program does with Pillow; the others read it prepared, as
    raw numbers.
    """
    return {
        "Python": f"```python\n{_python(model, contract, spec)}```\n",
        "JavaScript": f"```javascript\n{_javascript(model, contract, spec)}```\n",
        "C#": f"```csharp\n{_csharp(model, contract, spec)}```\n",
    }


def _python(model: str, contract: Contract, spec: PreprocessSpec) -> str:
    lines = [
        "import json",
        "import os",
        "import sys",
        "",
        "os.environ['ORT_DISABLE_TELEMETRY'] = '1'  # before onnxruntime is imported",
        "import numpy as np",
        "import onnxruntime",
        "from PIL import Image, ImageOps",
        "",
        f"session = onnxruntime.InferenceSession({json.dumps(model)})",
        "classes = json.loads(session.get_modelmeta().custom_metadata_map['classes'])",
        "image = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert('RGB')",
        *_python_steps(contract, spec),
        "outputs = [output.name for output in session.get_outputs()]",
        f"values = session.run(outputs, {{'{contract.input_name}': values[None]}})",
        "for name, value in zip(outputs, values):",
        "    print(name, value[0].tolist())",
    ]
    if contract.task == "multi-label" and _scores(contract) == "probabilities":
        lines += [
            "thresholds = json.loads(session.get_modelmeta().custom_metadata_map['thresholds'])",
            "probabilities = values[outputs.index('probabilities')][0]",
            "print([n for n, p, t in zip(classes, probabilities, thresholds) if p >= t])",
        ]
    elif contract.top_k:
        lines.append("print(classes[values[outputs.index('top_classes')][0][0]])")
    elif best := _scores(contract):
        lines.append(f"print(classes[values[outputs.index('{best}')][0].argmax()])")
    return "\n".join(lines) + "\n"


def _scores(contract: Contract) -> str | None:
    return next((name for name in ("probabilities", "logits") if name in contract.outputs), None)


def _python_steps(contract: Contract, spec: PreprocessSpec) -> list[str]:
    if contract.input == "image":
        return ["values = np.asarray(image)  # (height, width, 3) uint8"]
    size, name = spec.image_size, spec.interpolation.upper()
    if spec.crop == "none":
        lines = [f"image = image.resize(({size}, {size}), Image.Resampling.{name})"]
    else:
        lines = [
            "short = min(image.size)",
            f"width, height = ({spec.resize} * side // short for side in image.size)",
            f"image = image.resize((width, height), Image.Resampling.{name})",
            f"left, top = round((width - {size}) / 2), round((height - {size}) / 2)",
            f"image = image.crop((left, top, left + {size}, top + {size}))",
        ]
    if contract.input == "crop":
        return [*lines, "values = np.asarray(image)"]
    return [
        *lines,
        "values = np.asarray(image, np.float32) / np.float32(255)",
        f"values = (values - np.float32({list(spec.mean)})) / np.float32({list(spec.std)})",
        "values = values.transpose(2, 0, 1)",
    ]


def _javascript(model: str, contract: Contract, spec: PreprocessSpec) -> str:
    size = spec.image_size
    if contract.input == "image":
        what = "RGB bytes of an image of any size, row by row (a canvas gives RGBA)"
        shape = "[1, Number(process.argv[3]), Number(process.argv[4]), 3]"
    elif contract.input == "crop":
        what = f"RGB bytes of {size}×{size} pixels, resized and cropped as 'Preprocessing' says"
        shape = f"[1, {size}, {size}, 3]"
    else:
        what = f"3×{size}×{size} floats, resized, cropped and normalised as 'Preprocessing' says"
        shape = f"[1, 3, {size}, {size}]"
    kind = "float32" if contract.input == "tensor" else "uint8"
    array = "Float32Array" if contract.input == "tensor" else "Uint8Array"
    return "\n".join(
        [
            "// an ES module for Node; in a browser, fetch() gives the bytes of both files",
            'import { readFileSync } from "node:fs";',
            'import * as ort from "onnxruntime-web";',
            "",
            "const bytesOf = (path) => new Uint8Array(readFileSync(path));",
            f"const session = await ort.InferenceSession.create(bytesOf({json.dumps(model)}));",
            f"// {what}",
            f"const data = new {array}(bytesOf(process.argv[2]).buffer);",
            f'const input = new ort.Tensor("{kind}", data, {shape});',
            f"const outputs = await session.run({{ {contract.input_name}: input }});",
            "for (const name of session.outputNames) {",
            "  console.log(name, JSON.stringify(Array.from(outputs[name].data, Number)));",
            "}",
            "",
        ]
    )


def _csharp(model: str, contract: Contract, spec: PreprocessSpec) -> str:
    size = spec.image_size
    kind = "float" if contract.input == "tensor" else "byte"
    if contract.input == "image":
        what = "RGB bytes of an image of any size, row by row"
        shape = "1, int.Parse(args[1]), int.Parse(args[2]), 3"
    elif contract.input == "crop":
        what = f"RGB bytes of {size}×{size} pixels, resized and cropped as 'Preprocessing' says"
        shape = f"1, {size}, {size}, 3"
    else:
        what = f"3×{size}×{size} floats, resized, cropped and normalised as 'Preprocessing' says"
        shape = f"1, 3, {size}, {size}"
    read = (
        "System.Runtime.InteropServices.MemoryMarshal.Cast<byte, float>(bytes).ToArray()"
        if kind == "float"
        else "bytes"
    )
    return "\n".join(
        [
            "// dotnet add package Microsoft.ML.OnnxRuntime",
            "using Microsoft.ML.OnnxRuntime;",
            "using Microsoft.ML.OnnxRuntime.Tensors;",
            "",
            "OrtEnv.Instance().DisableTelemetryEvents();",
            f"using var session = new InferenceSession({json.dumps(model)});",
            f"// {what}",
            "byte[] bytes = File.ReadAllBytes(args[0]);",
            f"var input = new DenseTensor<{kind}>({read}, new[] {{ {shape} }});",
            "using var outputs = session.Run(new[] {",
            f'    NamedOnnxValue.CreateFromTensor("{contract.input_name}", input)',
            "});",
            "foreach (var output in outputs)",
            "{",
            '    var text = output.Name == "top_classes"',
            '        ? string.Join(", ", output.AsEnumerable<long>())',
            '        : string.Join(", ", output.AsEnumerable<float>());',
            '    Console.WriteLine($"{output.Name}: {text}");',
            "}",
            "",
        ]
    )
