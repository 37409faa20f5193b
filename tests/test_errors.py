"""The exception tree: what a caller may catch, and that errors survive a trip between processes."""

from __future__ import annotations

import copy
import errno
import math
import pickle
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

import featx
from featx import errors
from featx.errors import (
    ArtifactBusy,
    ArtifactError,
    ArtifactExists,
    ArtifactIncomplete,
    ArtifactInvalid,
    ArtifactMismatch,
    ArtifactMissing,
    BackboneError,
    BadImages,
    ClusterError,
    ConfigError,
    ExportError,
    FeatxError,
    HubError,
    ImageError,
    ImageTooLarge,
    ParityError,
    SourceError,
    TrainingError,
    require_number,
)

PARENTS = {
    ConfigError: (FeatxError, ValueError),
    SourceError: (FeatxError,),
    ImageError: (SourceError,),
    ImageTooLarge: (ImageError,),
    BadImages: (SourceError,),
    BackboneError: (FeatxError,),
    HubError: (FeatxError,),
    TrainingError: (FeatxError,),
    ClusterError: (FeatxError,),
    ArtifactError: (FeatxError,),
    ArtifactMissing: (ArtifactError, FileNotFoundError),
    ArtifactExists: (ArtifactError, FileExistsError),
    ArtifactInvalid: (ArtifactError, ValueError),
    ArtifactIncomplete: (ArtifactError,),
    ArtifactBusy: (ArtifactError,),
    ArtifactMismatch: (ArtifactError, ValueError),
    ExportError: (FeatxError,),
    ParityError: (ExportError,),
}

EXAMPLES = [
    ConfigError("size must be 1; got 0."),
    SourceError("'photos' does not exist."),
    ImageError("ants/1.jpg", "the file is empty.", is_permanent=False),
    ImageTooLarge("ants/1.jpg", "9×9 pixels are too many.", is_permanent=True),
    BadImages([("ants/1.jpg", "the file is empty.")], 7, "Repair it."),
    BackboneError("no such backbone."),
    HubError("the hub answers with an error (500)."),
    TrainingError("the loss is not finite."),
    ClusterError("no node answers."),
    *(
        kind(Path("a/b.h5"), "'a/b.h5' is odd.")
        for kind in PARENTS
        if issubclass(kind, ArtifactError)
    ),
    ExportError("no."),
    ParityError("they differ.", difference=0.5, bound=0.25),
]


def test_the_tree_is_the_one_in_the_design():
    assert {kind: kind.__bases__ for kind in PARENTS} == PARENTS
    classes = {value for value in vars(errors).values() if isinstance(value, type)}
    found = {kind for kind in classes if issubclass(kind, Exception)}
    assert found == {*PARENTS, FeatxError} == {FeatxError, *map(type, EXAMPLES)}
    assert errors.__doc__ is not None
    assert all(kind.__doc__ and kind.__name__ in errors.__doc__ for kind in PARENTS)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("trip", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
def test_an_error_survives_pickling_with_all_it_carries(error, trip):
    back = trip(error)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_an_image_error_names_the_image_and_keeps_the_reason_apart():
    error = ImageError("bees/ü 1.jpg", "the file is empty.")
    assert str(error) == "Image 'bees/ü 1.jpg': the file is empty."
    assert (error.sample_id, error.reason) == ("bees/ü 1.jpg", "the file is empty.")


@pytest.mark.parametrize("kind", [k for k in PARENTS if issubclass(k, ArtifactError)])
def test_an_artifact_error_says_its_message_and_carries_a_path(kind):
    error = kind("x/features.h5", "'x/features.h5' is odd.")
    assert str(error) == "'x/features.h5' is odd."  # not "[Errno …]", as OSError would have it
    assert error.path == Path("x/features.h5")


def test_bad_images_are_listed_up_to_twenty():
    bad = [(f"{number}.jpg", "the file is empty.") for number in range(23)]
    error = BadImages(bad, 40, "Repair them.")
    lines = str(error).splitlines()
    assert lines[0] == "23 of 40 images cannot be used:"
    assert lines[1] == "  0.jpg: the file is empty."
    assert lines[-2:] == ["  … and 3 more", "Repair them."]
    assert len(lines) == 23
    assert error.images == tuple(bad)


def raised_from(cause: BaseException | None) -> ImageError:
    with pytest.raises(ImageError) as caught:
        raise ImageError("a.jpg", "cannot be used.") from cause
    return caught.value


@pytest.mark.parametrize(
    "cause",
    [
        MemoryError(), OSError(errno.EIO, "I/O error"), PermissionError(errno.EACCES, "denied"),
        FileNotFoundError(errno.ENOENT, "no such file"), TimeoutError(), ModuleNotFoundError("x"),
        OSError("out of memory error when reading image file"),
        zlib.error("Error -4 while decompressing data: insufficient memory"),
    ],
)  # fmt: skip
def test_an_image_is_not_to_blame_for_the_machine(cause):
    assert not raised_from(cause).is_permanent
    wrapped = ValueError("it cannot be read")
    wrapped.__context__ = cause
    error = raised_from(wrapped)
    assert not error.is_permanent
    assert not pickle.loads(pickle.dumps(error)).is_permanent


@pytest.mark.parametrize(
    "cause", [None, ValueError("x"), OSError("image file is truncated"), SyntaxError()]
)
def test_an_image_is_to_blame_for_its_content(cause):
    error = raised_from(cause)
    assert error.is_permanent
    assert pickle.loads(pickle.dumps(error)).is_permanent
    assert not ImageError("a.jpg", "it changes while it is read.", is_permanent=False).is_permanent


@pytest.mark.parametrize(
    ("value", "interval", "expected"),
    [
        ("3", {"low": 1}, "must be a number; got '3'"),
        (True, {"low": 0}, "must be a number; got True"),
        (None, {"low": 0}, "must be a number; got None"),
        (2.0, {"low": 1, "whole": True}, "must be a whole number; got 2.0"),
        (math.nan, {"low": 0}, "must be at least 0; got nan"),
        (math.inf, {"low": 0}, "must be at least 0; got inf"),
        (0, {"low": 0, "ends": "(]"}, "must be above 0; got 0"),
        (1.0, {"low": 0, "high": 1, "ends": "[)"}, "must be at least 0 and below 1; got 1.0"),
        (10**400, {"low": 1, "high": 64, "unit": " pixels"}, "must be 1 to 64 pixels; got 1000"),
    ],
)
def test_numbers_outside_of_their_interval_are_refused(value, interval, expected):
    with pytest.raises(ConfigError, match=f"^size {re.escape(expected)}"):
        require_number("size", value, **interval)


@pytest.mark.parametrize("value", [0, 0.0, np.float32(0.5), np.int64(1), 1])
def test_numbers_within_their_interval_pass_also_those_of_numpy(value):
    require_number("size", value, 0, 1)
    require_number("size", None, 0, 1, optional=True)


def test_a_file_of_another_kind_is_named(photos, tmp_path):
    features, head = tmp_path / "f.h5", tmp_path / "h.safetensors"
    featx.extract(photos({"ants": 6, "bees": 6}), features, backbone="tiny")
    featx.train_head(features, head)
    model = featx.export_onnx(head, tmp_path / "m.onnx", verify=False).path
    wrong = [
        (featx.open_features, head, "a head"),
        (featx.open_features, model, "a model"),
        (featx.open_head, features, "a feature file"),
        (featx.open_head, model, "a model"),
        (featx.Predictor, features, "a feature file"),
        (featx.Predictor, head, "a head"),
    ]
    for open_it, path, what in wrong:
        with pytest.raises(ArtifactInvalid, match=rf"damaged.*\. It is {what}\.$"):
            open_it(path)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(head.read_bytes()[:500])
    with pytest.raises(ArtifactInvalid) as refused:
        featx.open_head(damaged)
    assert "It is" not in str(refused.value)
