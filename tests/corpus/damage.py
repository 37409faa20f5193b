"""Damaging files in every way a disk or a copy can, and seeing what their reader says.

``read_all`` is called in a process of its own, which a damaged file may crash or hang.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np

from featx.errors import FeatxError

SECTOR = 512
OUTCOMES = "outcomes.txt"

# --- damage -------------------------------------------------------------------------------------


def flip_bits(content: bytearray, random: np.random.Generator) -> None:
    for _ in range(random.integers(1, 4)):
        content[random.integers(len(content))] ^= 1 << int(random.integers(8))


def overwrite_byte(content: bytearray, random: np.random.Generator) -> None:
    content[random.integers(len(content))] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF]))


def truncate(content: bytearray, random: np.random.Generator) -> None:
    del content[random.integers(len(content)) :]


def zero_sector(content: bytearray, random: np.random.Generator) -> None:
    start = SECTOR * int(random.integers(-(-len(content) // SECTOR)))
    content[start : start + SECTOR] = bytes(len(content[start : start + SECTOR]))


def swap_sectors(content: bytearray, random: np.random.Generator) -> None:
    one, two = (SECTOR * int(n) for n in random.integers(len(content) // SECTOR, size=2))
    first, second = content[one : one + SECTOR], content[two : two + SECTOR]
    content[one : one + SECTOR], content[two : two + SECTOR] = second, first


def append_junk(content: bytearray, random: np.random.Generator) -> None:
    content += random.bytes(int(random.integers(1, 600)))


DAMAGES: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    *(flip_bits, overwrite_byte, truncate, zero_sector, swap_sectors, append_junk),
)


def damaged(content: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield ``count`` damaged copies, each kind of damage in turn: (name, content)."""
    for seed in range(count):
        damage, copy = DAMAGES[seed % len(DAMAGES)], bytearray(content)
        damage(copy, np.random.default_rng(seed))
        yield f"{seed:04d}-{damage.__name__}", bytes(copy)


# --- reading ------------------------------------------------------------------------------------


def digest_of(path: Path) -> str:
    """Return a hash of every value that featx reads from a file, whichever it is."""
    read = {".h5": _features, ".safetensors": _head, ".onnx": _classifier}[path.suffix]
    digest = hashlib.sha256()
    for part in read(path):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _features(path: Path) -> Iterator[bytes]:
    from featx.features.file import open_features

    opened = open_features(path)
    values = {field.name: getattr(opened, field.name) for field in fields(opened)}
    assert values.pop("path") == path
    yield values.pop("header").to_json().encode()
    for value in (opened.features, *values.values()):
        if isinstance(value, np.ndarray):
            yield f"{value.dtype} {value.shape}".encode() + value.tobytes()
        else:
            yield repr(value).encode()


def _head(path: Path) -> Iterator[bytes]:
    from featx.heads.head import open_head

    opened = open_head(path)
    yield opened.header.to_json().encode()
    for part in (part for layer in opened.layers for part in layer):
        yield f"{part.dtype} {part.shape}".encode() + part.tobytes()


def _classifier(path: Path) -> Iterator[bytes]:
    from featx.classifier.session import open_classifier

    opened = open_classifier(path, threads=1)
    yield opened.header.to_json().encode()
    image = np.random.default_rng(0).integers(0, 256, (1, 37, 61, 3), dtype=np.uint8)
    for answer in opened.run(image).values():
        yield answer.tobytes()


def read_all(folder: Path) -> None:
    """Read each file of a folder that has no outcome yet; note its hash, or what refused it.

    The note of a file that crashes or hangs the process stays open.
    """
    notes = folder / OUTCOMES
    done = {line.split()[0] for line in notes.read_text().splitlines()} if notes.exists() else set()
    with notes.open("a") as out:
        for path in sorted(folder.iterdir()):
            if path != notes and path.name not in done:
                out.write(f"{path.name} ")
                out.flush()  # a crash takes with it what is not written yet
                try:
                    out.write(f"{digest_of(path)}\n")
                except FeatxError as err:
                    out.write(f"{type(err).__name__}\n")
                except Exception as err:  # an outcome, too: the one that must not be
                    out.write(f"escaped:{type(err).__name__}:{str(err)[:80]!r}\n")
