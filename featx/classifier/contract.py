"""Inputs and outputs of a classifier file: names in its header, text in its metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from featx.errors import ConfigError, ImageError, require_choice, require_number
from featx.heads.tasks import SINGLE_LABEL, Task
from featx.images.preprocess import (
    MAX_ASPECT_RATIO,
    PreprocessSpec,
    border_colour,
    preprocess,
)

Input = Literal["image", "crop", "tensor"]

MAX_TOP_K = 1000
MAX_SIDE, MAX_BATCH = 8192, 1024
"""Limits of files for one shape of image and one number of images."""
_TOP_K = re.compile(r"top-([1-9][0-9]{0,3})")
_CHOICES = ("logits", "probabilities", "values", "features")
_OF_CLASSES = ("logits", "probabilities")
_SQUASHED = {
    "Softmax": "softmax of the logits",
    "Sigmoid": "sigmoid of the logits; a tag is given from its entry in the metadata entry "
    "'thresholds' on",
}
_ROUNDING = 1e-3
"""Tolerance of probabilities outside [0, 1]."""


@dataclass(frozen=True)
class Value:
    """A tensor that goes in or comes out; free sides of its shape have names."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    text: str


def find_fault(value: Value, found: np.ndarray, *, num_rows: int, num_classes: int) -> str | None:
    """Return why an output of any shape ``(*shape,)`` breaks the contract; None where it keeps it.

    ``num_rows`` images went in; ``top_classes`` may index ``num_classes``.
    """
    shape = (num_rows, *value.shape[1:])
    if found.shape != shape or found.dtype != value.dtype:
        return f"{found.dtype} {found.shape}, expected {value.dtype} {shape}"
    if not np.isfinite(found).all():
        return "numbers that are not finite"
    if value.name in ("probabilities", "top_scores"):
        low, high = -_ROUNDING, 1 + _ROUNDING
    elif value.name == "top_classes":
        low, high = 0, num_classes - 1
    else:
        return None
    outside = (found < low) | (found > high)
    return f"{found[outside][0]:.6g}, outside 0 to {high:.0f}" if outside.any() else None


@dataclass(frozen=True)
class Contract:
    """Inputs and outputs of a classifier.

    Attributes:
        input: ``"image"``: RGB bytes of any size; ``"crop"``: RGB bytes, already resized and
            cropped; ``"tensor"``: the same, normalised, channels first.
        outputs: Any of ``"logits"``, ``"probabilities"``, ``"features"`` and ``"top-K"`` (the K
            most probable classes), in this order; of a regression ``"values"`` and
            ``"features"``.
        task: What the head answers.
        image_shape: Height and width, pixels, of the only images it takes; None takes any.
        batch: How many images it takes at once; None takes any number.

    Raises:
        ConfigError: A name is unknown, occurs twice, or is missing; or a size is out of range.
    """

    input: Input = "image"
    outputs: tuple[str, ...] = _OF_CLASSES
    task: Task = SINGLE_LABEL
    image_shape: tuple[int, int] | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        require_choice("input", self.input, get_args(Input))
        if not self.outputs:
            raise ConfigError("a classifier needs at least one output.")
        ranks = [_rank(name) for name in self.outputs]
        if len(set(ranks)) < len(ranks):
            raise ConfigError(f"an output is named twice: {', '.join(self.outputs)}.")
        ordered = sorted(self.outputs, key=_rank)
        object.__setattr__(self, "outputs", tuple(ordered))
        self._require_sizes()

    def _require_sizes(self) -> None:
        require_number("batch", self.batch, 1, MAX_BATCH, whole=True, optional=True)
        if self.image_shape is None:
            return
        if self.input != "image":
            raise ConfigError(
                f"image_shape is for input='image'; input='{self.input}' has a fixed size already."
            )
        sides = self.image_shape
        if len(sides) != 2 or not all(side in range(1, MAX_SIDE + 1) for side in sides):
            raise ConfigError(
                f"image_shape must be height and width, 1 to {MAX_SIDE} pixels each; got {sides}."
            )
        if max(sides) > MAX_ASPECT_RATIO * min(sides):
            raise ConfigError(
                f"image_shape is too narrow: one side may be at most {MAX_ASPECT_RATIO} times the "
                f"other; got {sides}."
            )

    @property
    def input_name(self) -> str:
        """Name of the input in the graph: ``"image"`` for bytes, ``"tensor"`` for floats."""
        return "tensor" if self.input == "tensor" else "image"

    @property
    def top_k(self) -> int | None:
        """How many classes ``top-K`` gives; None without it."""
        found = [_TOP_K.fullmatch(name) for name in self.outputs]
        return next((int(match[1]) for match in found if match), None)

    def with_outputs(self, *names: str) -> Contract:
        """Return the contract with further outputs."""
        missing = tuple(name for name in names if name not in self.outputs)
        return replace(self, outputs=self.outputs + missing)

    def for_task(self, task: Task) -> Contract:
        """Return the contract of a head of a task; the default outputs are those of the task.

        Raises:
            ConfigError: The head has no such output.
        """
        outputs = self.outputs
        own = _OF_CLASSES if task.activation else (task.raw_output,)
        if outputs == _OF_CLASSES:
            outputs = own
        for name in outputs:
            ranked = task.activation and _TOP_K.fullmatch(name)
            if name not in (*own, "features") and not ranked:
                raise ConfigError(f"a head of {task.name} has no output {name!r}.")
        return replace(self, outputs=outputs, task=task)

    def to_dict(self) -> dict[str, Any]:
        """Return the contract as JSON values."""
        sizes = {"image_shape": self.image_shape and list(self.image_shape), "batch": self.batch}
        fixed = {name: value for name, value in sizes.items() if value is not None}
        return {"input": self.input, "outputs": list(self.outputs)} | fixed

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None, *, task: Task = SINGLE_LABEL) -> Contract:
        """Return the contract that ``to_dict`` described; None is the default one."""
        if values is None:
            return cls().for_task(task)
        try:
            found = cls(values["input"], tuple(values["outputs"]), batch=values.get("batch"))
            shape = values.get("image_shape")
            return replace(found, image_shape=shape and tuple(shape)).for_task(task)
        except (KeyError, TypeError) as err:
            raise ConfigError(f"not a contract ({err}).") from err

    def input_value(self, spec: PreprocessSpec) -> Value:
        """Return the input."""
        size = spec.image_size
        sides = "of this" if self.image_shape else "any"
        words = {
            "image": f"RGB, 0 to 255, {sides} height and width, neither resized nor normalised "
            "(the graph does both)",
            "crop": "RGB, 0 to 255, resized and cropped, not normalised (the graph does that)",
            "tensor": "channels R, G, B; resized, cropped and normalised",
        }
        batch = self.batch or "batch"
        if self.input == "tensor":
            return Value("tensor", "float32", (batch, 3, size, size), words["tensor"])
        shape: tuple[int | str, ...] = self.image_shape or ("height", "width")
        if self.input == "crop":
            shape = (size, size)
        return Value("image", "uint8", (batch, *shape, 3), words[self.input])

    def output_values(self, *, num_classes: int, num_features: int) -> tuple[Value, ...]:
        """Return the outputs in the graph's order.

        Raises:
            ConfigError: ``top-K`` asks for more classes than there are.
        """
        columns = "columns in the order of the metadata entry 'classes'"
        batch = self.batch or "batch"
        per_class = (batch, num_classes)
        squashed = _SQUASHED.get(self.task.activation or "")
        values = {
            "logits": Value("logits", "float32", per_class, f"unnormalised scores, {columns}"),
            "probabilities": Value("probabilities", "float32", per_class, f"{squashed}, {columns}"),
            "values": Value(
                "values", "float32", per_class, f"in the unit of the labels, {columns}"
            ),
            "features": Value(
                "features",
                "float32",
                (batch, num_features),
                "of the backbone, which the head reads",
            ),
        }
        found = [values[name] for name in self.outputs if name in values]
        if k := self.top_k:
            if k > num_classes:
                raise ConfigError(f"top-{k} was asked for, but there are {num_classes} classes.")
            best = f"of the {k} most probable classes, best first"
            found += [
                Value("top_scores", "float32", (batch, k), f"probabilities {best}"),
                Value("top_classes", "int64", (batch, k), f"indices into 'classes' {best}"),
            ]
        return tuple(found)

    def describe(self, spec: PreprocessSpec, *, num_classes: int, num_features: int) -> str:
        """Describe inputs and outputs for users without featx."""
        values = self.output_values(num_classes=num_classes, num_features=num_features)
        lines = [_line(self.input_value(spec)), *(_line(value) for value in values)]
        if self.input != "image":
            lines.append(f"How to make the input: {'; '.join(steps(spec, self.input))}.")
        return "\n".join(lines)

    def prepare(self, pixels: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
        """Return one RGB image ``(height, width, 3)`` uint8 as the file takes it.

        That is itself; or the crop ``(size, size, 3)`` uint8; or ``(3, size, size)`` float32.

        Raises:
            ImageError: The file takes images of one shape, and this one has another.
        """
        if self.image_shape is not None and self.image_shape != pixels.shape[:2]:
            height, width = pixels.shape[:2]
            raise ImageError(
                f"{width}×{height} pixels",
                f"the model takes images of {self.image_shape[1]}×{self.image_shape[0]} pixels "
                f"alone; this one has {width}×{height}.",
            )
        if self.input == "image":
            return pixels
        crop = preprocess(pixels, spec)
        return crop if self.input == "crop" else normalise(crop, spec)


def normalise(pixels: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """Return ``(*, 3, size, size)`` float32 of RGB pixels ``(*, size, size, 3)`` uint8."""
    scaled = pixels.astype(np.float32) / np.float32(255)
    values = (scaled - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(np.moveaxis(values, -1, -3))


def steps(spec: PreprocessSpec, wanted: Input) -> list[str]:
    """Describe how an image becomes the input, one clause for each step."""
    size, name = spec.image_size, spec.interpolation
    kernel = "triangle" if name == "bilinear" else "cubic with a = -0.5"
    square = f"{spec.resize}×{spec.resize} pixels, whatever the shape"
    new = (
        square
        if spec.crop in ("none", "squash")
        else f"round(H / (L / {spec.resize})) and round(W / (L / {spec.resize})) pixels, at least "
        "1, where H and W are the image's height and width and L is the larger of them"
        if spec.crop == "border"
        else f"height {spec.resize} · H // S and width {spec.resize} · W // S pixels, where H and "
        "W are the image's height and width, S is the smaller of them and // divides whole numbers"
    )
    scaled = (
        " (a JPEG at the smallest of 1/8, 1/4, 1/2 and 1/1 of its size whose sides are at least "
        "twice what they are resized to, as Pillow's draft does)"
        if spec.decode == "scaled"
        else ""
    )
    found = [
        f"decode to 8-bit RGB{scaled}, lay what is transparent on white, and turn it as its EXIF "
        "orientation says",
        f"resize to {new}, as Pillow's resize with Resampling.{name.upper()} does: antialiased "
        f"(the {kernel} kernel is as wide as the reduction), weights only inside the image, one "
        "axis after the other, rounded to whole numbers 0 to 255 after each",
    ]
    if spec.pad or spec.crop == "border":
        found.append(
            f"where a side is below {size} pixels, add (missing // 2) before it and the rest "
            f"behind it in the colour {list(border_colour(spec))}"
        )
    if spec.crop != "none":
        found.append(
            f"cut out {size}×{size} pixels from row round((height - {size}) / 2) and column "
            f"round((width - {size}) / 2) on, halves rounded to even"
        )
    if wanted == "tensor":
        found.append(
            f"divide by 255, subtract {list(spec.mean)} and divide by {list(spec.std)} (R, G, B)"
        )
        found.append("put the channels first")
    return found


def _rank(name: str) -> int:
    if name in _CHOICES:
        return _CHOICES.index(name)
    match = _TOP_K.fullmatch(name) if isinstance(name, str) else None
    if match and int(match[1]) <= MAX_TOP_K:
        return len(_CHOICES)
    raise ConfigError(
        f"output must be logits, probabilities, values, features or top-K with K from 1 to "
        f"{MAX_TOP_K}; got {name!r}."
    )


def output_names(choice: str | Iterable[str]) -> tuple[str, ...]:
    """Return outputs named in lists with commas: ``"logits,top-5"`` or ``["logits", "top-5"]``."""
    lists = [choice] if isinstance(choice, str) else choice
    return tuple(name.strip() for text in lists for name in text.split(",") if name.strip())


def _line(value: Value) -> str:
    shape = ", ".join(map(str, value.shape))
    return f"{value.name}: {value.dtype} ({shape}), {value.text}."
