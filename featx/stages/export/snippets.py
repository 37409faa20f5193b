"""How to use an exported file without featx: code that follows its contract."""

from __future__ import annotations

import json

from featx.classifier.contract import Contract
from featx.images.preprocess import PreprocessSpec


def snippets(model: str, contract: Contract, spec: PreprocessSpec) -> dict[str, str]:
    """Return Markdown blocks of code: Python, JavaScript and C#.

    Each is a whole program that prints the file's outputs. What the file does not do itself, the
    Python program does with Pillow: it takes the path of an image of 8 bits, or of grey of 16. The
    others take the path of raw numbers, prepared as their comment says.
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
        "",
        *_python_decoding(spec),
        "",
        "",
        f"session = onnxruntime.InferenceSession({json.dumps(model)})",
        "classes = json.loads(session.get_modelmeta().custom_metadata_map['classes'])",
        "image = read_rgb(sys.argv[1])",
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


def _python_decoding(spec: PreprocessSpec) -> list[str]:
    """Return a function that decodes an image by the rules of ``images.decode``."""
    lines = [
        "def read_rgb(path):  # of images with 8 bits a channel, or 16-bit grey",
        "    image = Image.open(path)",
    ]
    if spec.decode == "scaled":
        side = "side" if spec.crop == "center" else "min(image.size)"
        lines += [
            f"    width, height = (2 * ({spec.resize} * {side} // min(image.size)) "
            "for side in image.size)",
            "    image.draft(None, (width, height))  # a JPEG at part of its size",
        ]
    return [
        *lines,
        "    if image.mode in ('I', 'F'):",
        "        sys.exit('32-bit grey has no known range; convert it to 8 or 16 bits')",
        "    if image.mode == 'LAB':",
        "        sys.exit('CIELab is not read; convert it to RGB')",
        "    image = ImageOps.exif_transpose(image)",
        "    if image.mode.startswith('I;16'):  # 16-bit grey",
        "        grey = np.asarray(image).astype(np.uint32)",
        "        if 'transparency' in image.info:  # a grey that stands for transparent",
        "            grey[grey == image.info['transparency']] = 65535",
        "        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))",
        "    elif image.has_transparency_data:  # is laid on white",
        "        white = Image.new('RGBA', image.size, 'white')",
        "        image = Image.alpha_composite(white, image.convert('RGBA'))",
        "    return image.convert('RGB')",
    ]


def _raw_input(contract: Contract, spec: PreprocessSpec) -> str:
    """Return what the file of raw numbers has to hold."""
    size = spec.image_size
    if contract.input == "image":
        return (
            "path, height and width of RGB bytes, row by row: decoded to 8 bits, upright, "
            "transparency laid on white"
        )
    if contract.input == "crop":
        return f"path of RGB bytes of {size}×{size} pixels, made as 'Preprocessing' says"
    return f"path of 3×{size}×{size} floats, made as 'Preprocessing' says"


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
        shape = "[1, Number(process.argv[3]), Number(process.argv[4]), 3]"
    elif contract.input == "crop":
        shape = f"[1, {size}, {size}, 3]"
    else:
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
            f"// takes the {_raw_input(contract, spec)}",
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
        shape = "1, int.Parse(args[1]), int.Parse(args[2]), 3"
    elif contract.input == "crop":
        shape = f"1, {size}, {size}, 3"
    else:
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
            f"// takes the {_raw_input(contract, spec)}",
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
