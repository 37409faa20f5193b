"""Columns of a Parquet file: which hold images and labels, and what the labels say."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple

from featx.errors import SourceError, listed
from featx.images.sources.address import SourceOptions
from featx.images.sources.labels import LABEL_NAMES, SEPARATOR

log = logging.getLogger(__name__)

Kind = Literal["", "names", "text", "number", "list"]
"""What labels are: class numbers with names, texts, bare numbers, lists; empty where none are."""

_LABELS = (*LABEL_NAMES, "labels")
_IMAGES = ("image", "img", "picture", "photo", "images", "jpg", "png", "webp", "jpeg", "bytes")
_PATHS = ("path", "filename", "file_name", "file", "filepath", "file_path", "image_path")


class Columns(NamedTuple):
    """Names of columns, empty where there is none, and the class names of a label's numbers."""

    image: str  # of a struct, its field of bytes: image.bytes
    label: str
    split: str
    group: str
    names: tuple[str, ...]


def find_columns(path: Path, schema: Any, options: SourceOptions) -> Columns:
    """Return the columns to be read.

    Raises:
        SourceError: Which holds the images, or the labels, is not told; or the class names in the
            schema's metadata are damaged.
    """
    features = _features(schema)
    image = _said(path, schema, options.path_column, "path") or _image(path, schema, features)
    label = _said(path, schema, options.label_column, "label") or _label(path, schema, features)
    found = {name.lower(): name for name in schema.names}
    split = _said(path, schema, options.split_column, "split") or found.get("split", "")
    group = _said(path, schema, options.group_column, "group") or found.get("group", "")
    names = _class_names(path, features.get(label)) if label else ()
    return Columns(_with_field(path, schema, image), label, split, group, names)


def image_leaf(file: Any, columns: Columns) -> tuple[int, str]:
    """Return the number of the column chunks of images, and the column of paths, if any."""
    schema = file.metadata.schema
    leaves = [schema.column(i).path for i in range(len(schema))]
    leaf = next(
        i
        for i, each in enumerate(leaves)
        if each == columns.image or each.startswith(f"{columns.image}.list.")
    )
    parent, dot, _ = columns.image.rpartition(".")
    beside = f"{parent}.path"
    if dot and beside in leaves:
        return leaf, beside
    return leaf, columns.image if _is_text(file.schema_arrow, columns.image) else ""


def _is_text(schema: Any, name: str) -> bool:
    import pyarrow as pa

    if name not in schema.names:
        return False
    found = _values(schema.field(name).type)
    return pa.types.is_string(found) or pa.types.is_large_string(found) or _is_view(found, "string")


def _is_view(found: Any, kind: str) -> bool:
    return str(found) == f"{kind}_view"


def _values(found: Any) -> Any:
    import pyarrow as pa

    return found.value_type if pa.types.is_dictionary(found) else found


def _features(schema: Any) -> dict[str, Any]:
    """Return what Hugging Face's ``datasets`` wrote of the columns; empty where it did not."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _type_of(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _said(path: Path, schema: Any, wanted: str, name: str) -> str:
    if wanted and schema.names.count(wanted) != 1:
        raise SourceError(
            f"'{path}' has no column called '{wanted}' ({name}_column); found "
            f"{listed([repr(each) for each in schema.names], 12)}."
        )
    return wanted


def _image(path: Path, schema: Any, features: dict[str, Any]) -> str:
    known = [name for name in schema.names if _type_of(features.get(name)) == "Image"]
    fit = known or [each.name for each in schema if _is_image(each.type)]
    texts = [
        each
        for each in schema.names
        if _is_text(schema, each) and each.lower() in (*_PATHS, *_IMAGES)
    ]
    called = [name for name in fit if name.lower() in _IMAGES]
    candidates = fit if len(fit) == 1 else called or fit or texts
    if len(candidates) == 1:
        return str(candidates[0])
    if candidates:
        raise SourceError(
            f"'{path}' has the columns {listed([repr(each) for each in candidates])}, and each may "
            f"be the image. Say which: path_column='{candidates[0]}'."
        )
    columns = listed([f"'{each.name}' ({each.type})" for each in schema], 12)
    raise SourceError(
        f"'{path}' has no column of encoded images (binary, or a struct with the field bytes); "
        f"found {columns or 'none'}."
    )


def _is_image(found: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(found):
        names = [found.field(i).name for i in range(found.num_fields)]
        inner = found.field(names.index("bytes")).type if "bytes" in names else None
        return inner is not None and (pa.types.is_null(inner) or _is_image(inner))
    if _is_list(found):
        return bool(pa.types.is_uint8(found.value_type))
    found = _values(found)
    is_binary = pa.types.is_binary(found) or pa.types.is_large_binary(found)
    return bool(is_binary or pa.types.is_fixed_size_binary(found) or _is_view(found, "binary"))


def _is_list(found: Any) -> bool:
    import pyarrow as pa

    is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
    return bool(is_list or pa.types.is_fixed_size_list(found))


def _with_field(path: Path, schema: Any, image: str) -> str:
    import pyarrow as pa

    found = schema.field(image).type
    if not _is_image(found) and not _is_text(schema, image):
        raise SourceError(
            f"'{path}': the column '{image}' is of type {found}; an encoded image is binary, a "
            "list of uint8, a struct with the field bytes, or a path beside the file."
        )
    return f"{image}.bytes" if pa.types.is_struct(found) else image


def _label(path: Path, schema: Any, features: dict[str, Any]) -> str:
    found = [name for name in schema.names if name.lower() in _LABELS]
    if not found:
        found = [name for name in schema.names if _type_of(features.get(name)) == "ClassLabel"]
    if len(found) > 1:
        raise SourceError(
            f"'{path}' has the columns {' and '.join(map(repr, found))}, and each may be the "
            f"label. Say which: label_column='{found[0]}'."
        )
    return found[0] if found else ""


def _class_names(path: Path, feature: Any) -> tuple[str, ...]:
    for _ in range(3):  # a list of class labels, as three versions of the library wrote it
        inner = feature[0] if isinstance(feature, list) and feature else None
        inner = feature.get("feature") if isinstance(feature, dict) else inner
        if not inner or _type_of(feature) == "ClassLabel":
            break
        feature = inner
    if _type_of(feature) != "ClassLabel" or not feature.get("names"):
        return ()
    names = feature["names"]
    is_texts = isinstance(names, list) and all(isinstance(each, str) and each for each in names)
    if not is_texts or len(set(names)) < len(names):
        raise SourceError(
            f"'{path}': the class names in its schema are not a list of different texts."
        )
    return tuple(names)


def read_labels(path: Path, file: Any, columns: Columns) -> tuple[Kind, list[str]]:
    """Return of what kind the labels are, and each row's; empty where it has none.

    Raises:
        SourceError: A number is of no class, or a label is none.
    """
    if not columns.label:
        return "", [""] * file.metadata.num_rows
    values = file.read(columns=[columns.label], use_threads=False).column(0).to_pylist()
    if all(value is None for value in values):
        return "", [""] * len(values)
    if columns.names:
        return "names", [_named(path, columns, row, value) for row, value in enumerate(values)]
    has_lists = any(isinstance(value, list) for value in values)
    is_measured = any(_is_whole(value) and value < -1 for value in values)
    unlabelled = sum(_is_whole(value) and value == -1 for value in values)
    if unlabelled and not is_measured:
        log.info("'%s': %d labels are -1, which means none.", path, unlabelled)
        values = [None if _is_whole(value) and value == -1 else value for value in values]
    labels = [_text(path, columns.label, row, value) for row, value in enumerate(values)]
    if not any(labels):
        return "", labels
    if has_lists:
        return "list", labels
    return "text" if any(isinstance(value, str) for value in values) else "number", labels


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _named(path: Path, columns: Columns, row: int, value: Any) -> str:
    if value is None or value == -1:
        return ""
    if isinstance(value, list):
        return SEPARATOR.join(_named(path, columns, row, each) for each in value)
    if isinstance(value, str):
        return value.strip()
    if not _is_whole(value) or not 0 <= value < len(columns.names):
        raise SourceError(
            f"'{path}', row {row}: {columns.label} is {value!r}; its schema names "
            f"{len(columns.names)} classes, 0 to {len(columns.names) - 1}."
        )
    return str(columns.names[value])


def _text(path: Path, column: str, row: int, value: Any) -> str:
    if value is None or value != value:  # NaN  # noqa: PLR0124
        return ""
    if isinstance(value, list):
        return SEPARATOR.join(_text(path, column, row, each) for each in value)
    if isinstance(value, str | int | float):
        return str(value).strip()
    raise SourceError(
        f"'{path}', row {row}: a label is a text, a number, or a list of these; '{column}' has "
        f"{type(value).__name__}. Say another: label_column=…."
    )
