"""The reference images of a model's proof, which are known by content, wherever they are now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from featx.errors import ImageError
from featx.images.reading import read_digests
from featx.images.sources import ImageSource


class Reference(NamedTuple):
    """A reference image.

    Attributes:
        digest: Of its content.
        logits: What the head answered for it, ``(num_classes,)`` float32.
        sample_id: What it was called, where the model was exported with names.
    """

    digest: bytes
    logits: np.ndarray
    sample_id: str | None


def references_of(details: Mapping[str, Any]) -> list[Reference]:
    """Return the reference images that a model's details hold; none where it has no proof."""
    proof = details.get("proof") or {}
    return [
        Reference(
            bytes.fromhex(image["digest"]),
            np.array(image["logits"], np.float32),
            image.get("sample_id"),
        )
        for image in proof.get("witnesses") or ()
    ]


def find_references(
    references: Sequence[Reference], images: ImageSource
) -> list[tuple[int, Reference]]:
    """Return those references that a source holds, each with the index of its image.

    Looked for by name first, where names are known, then by content.
    """
    index_of = {sample.sample_id: index for index, sample in enumerate(images.samples)}
    named = [index_of[own.sample_id] for own in references if own.sample_id in index_of]
    found: dict[bytes, int] = {}
    wanted = {own.digest for own in references}
    for indices in (named, range(len(images.samples))):
        if wanted <= found.keys():
            break
        with closing(read_digests(images, indices)) as digests:
            for index, digest in digests:
                if not isinstance(digest, ImageError) and digest in wanted:
                    found.setdefault(digest, index)
                    if wanted <= found.keys():
                        break
    return [(found[own.digest], own) for own in references if own.digest in found]


def is_training_source(details: Mapping[str, Any], uri: str, digests: np.ndarray) -> bool:
    """Return whether a source holds nine in ten of a model's reference images.

    For a model without any, the source's name decides.

    Args:
        details: Of the model.
        uri: Of the source.
        digests: Content digests of its images, ``(N, 16)`` uint8.
    """
    references = references_of(details)
    if not references:
        return details.get("source") in (uri, without_folders(uri))
    there = {digest.tobytes() for digest in digests}
    return 10 * sum(own.digest in there for own in references) >= 9 * len(references)


def without_folders(origin: str) -> str:
    """Return where something came from, without the folders that it lay in.

    >>> without_folders("/home/ann/photos"), without_folders("file:/home/ann/w.pt")
    ('photos', 'file:w.pt')
    >>> without_folders("digits:"), without_folders("torchvision:IMAGENET1K_V1")
    ('digits:', 'torchvision:IMAGENET1K_V1')
    """
    scheme, colon, path = origin.partition(":")
    if not colon or "/" in scheme:
        scheme, colon, path = "", "", origin
    return scheme + colon + (path.rstrip("/").rpartition("/")[2] or path)
