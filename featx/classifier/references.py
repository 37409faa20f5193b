"""Reference images of a proof, which are known by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from featx.errors import ImageError
from featx.images.reading import read_digests
from featx.images.sources import ImageSource


class Reference(NamedTuple):
    """A reference image; its name is known where the model was exported with names."""

    digest: bytes
    logits: np.ndarray  # (num_classes,) float32
    sample_id: str | None


def references_of(details: Mapping[str, Any]) -> list[Reference]:
    """Return the reference images that a model's details hold; none where it has no proof."""
    return [
        Reference(
            bytes.fromhex(image["digest"]),
            np.array(image["logits"], np.float32),
            image.get("sample_id"),
        )
        for image in (details.get("proof") or {}).get("witnesses") or ()
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
