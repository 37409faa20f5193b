"""Reference images are found by content, wherever they are now and whatever they are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from featx.artifact import without_folders
from featx.classifier.references import Reference, find_references, references_of
from featx.errors import ImageError
from featx.images.decode import content_digest
from featx.images.sources import Sample
from featx.stages.evaluate import is_training_source

IMAGES = [bytes([i]) * 9 for i in range(20)]


class Source:
    """Images by name; None cannot be read."""

    def __init__(self, images: dict[str, bytes | None], uri: str = "/home/ann/photos") -> None:
        self.uri, self.images, self.num_read = uri, list(images.values()), 0
        self.samples = [Sample(name, 0, "train") for name in images]

    def read(self, index: int) -> bytes:
        self.num_read += 1
        content = self.images[index]
        if content is None:
            raise ImageError(self.samples[index].sample_id, "cannot be read.")
        return content


def source(images: Sequence[bytes | None] = IMAGES, *, prefix: str = "", **settings: Any) -> Any:
    return Source({f"{prefix}{i}": content for i, content in enumerate(images)}, **settings)


def details(*numbers: int, names: bool = False) -> dict[str, Any]:
    witnesses = [
        {"digest": content_digest(IMAGES[i]).hex(), "logits": [i, 0]}
        | ({"sample_id": str(i)} if names else {})
        for i in numbers
    ]
    return {"source": "photos", "proof": {"witnesses": witnesses}}


def found(images: Any, *numbers: int, names: bool = False) -> list[tuple[int, int]]:
    """Return index and first logit of each reference that was found."""
    references = references_of(details(*numbers, names=names))
    return [(index, int(own.logits[0])) for index, own in find_references(references, images)]


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("prefix", ["", "renamed "])
def test_references_are_found_by_content(names, prefix):
    assert found(source(prefix=prefix), 3, 1, 17, names=names) == [(3, 3), (1, 1), (17, 17)]


def test_names_save_reading_the_others():
    images = source()
    assert found(images, 3, 17, names=True) == [(3, 3), (17, 17)]
    assert images.num_read == 2


def test_one_that_changed_is_missing_and_copies_are_found_as_one():
    changed = [b"other" if i == 3 else content for i, content in enumerate(IMAGES)]
    for names in (False, True):
        assert found(source(changed), 3, 17, names=names) == [(17, 17)]
    assert found(source(), 5, 5) == [(5, 5), (5, 5)]


def test_images_that_cannot_be_read_are_passed_over():
    assert found(source([None, *IMAGES]), 3) == [(4, 3)]


def contents(images: Sequence[bytes]) -> np.ndarray:
    digests = b"".join(map(content_digest, images))
    return np.frombuffer(digests, np.uint8).reshape(-1, 16)


def test_a_training_source_is_known_by_content_not_by_name():
    own = details(*range(10))
    assert is_training_source(own, "/elsewhere", contents(IMAGES))
    assert is_training_source(own, "/home/ann/photos", contents(IMAGES[1:]))
    assert not is_training_source(own, "/home/ann/photos", contents(IMAGES[2:]))
    assert not is_training_source(own, "/home/ann/photos", contents([b"other"]))


def test_without_references_the_name_tells():
    for name in ("photos", "/home/ann/photos"):  # files of earlier versions have the whole path
        own = {"source": name, "proof": None}
        assert is_training_source(own, "/home/ann/photos", contents(IMAGES))
        assert not is_training_source(own, "/home/ann/others", contents(IMAGES))


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("/home/ann/photos", "photos"),
        ("/home/ann/photos/", "photos"),
        ("/home/ann/a:b/x:y.csv", "x:y.csv"),
        ("cifar10:/home/ann/cifar", "cifar10:cifar"),
        ("file:/home/ann/w.pt", "file:w.pt"),
        ("file:w.pt", "file:w.pt"),
        ("digits:", "digits:"),
        ("random:7", "random:7"),
        (
            "torchvision:ResNet18_Weights.IMAGENET1K_V1",
            "torchvision:ResNet18_Weights.IMAGENET1K_V1",
        ),
        ("/", "/"),
        ("C:\\Users\\ann\\photos", "photos"),
        ("file:C:/Users/ann/w.pt", "file:w.pt"),
        (
            "/a/b.csv?label_column=x&root=%2Fhome%2Fann&suffix=.jpg",
            "b.csv?label_column=x&suffix=.jpg",
        ),
        ("b.csv?root=%2Fhome%2Fann", "b.csv"),
    ],
)
def test_folders_are_left_out(origin, expected):
    assert without_folders(origin) == expected


def test_a_model_without_a_proof_has_no_references():
    assert references_of({"proof": None}) == references_of({}) == []
    assert references_of({"proof": {"witnesses": None}}) == []
    (reference,) = references_of(details(4, names=True))
    assert isinstance(reference, Reference)
    assert reference.sample_id == "4"
