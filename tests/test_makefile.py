"""The make targets that chain the stages, and make again only what has changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
FILES = ("features.h5", "head.safetensors", "model.onnx")


class Chain:
    """A copy of the Makefile in a folder of its own, where the environment counts as set up.

    Args:
        folder: Where to.
        featx: What the targets call.
    """

    def __init__(self, folder: Path, featx: str) -> None:
        self.folder, self._featx = folder, featx
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        (folder / ".venv").mkdir()
        (folder / ".venv" / ".ready").touch()

    def make(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Call make as a user does, also where the tests are run by make."""
        of_make = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
        inherited = {name: value for name, value in os.environ.items() if name not in of_make}
        return subprocess.run(
            ["make", *arguments, f"FEATX={self._featx}"],
            cwd=self.folder,
            env=inherited | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def contents(self) -> dict[str, bytes]:
        return {name: (self.folder / "artifacts" / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two classes in a folder whose name has a space and an apostrophe."""
    photos = tmp_path_factory.mktemp("photos") / "bob's photos"
    generator = np.random.default_rng(0)
    for number, name in enumerate(("ants", "bees")):
        (photos / name).mkdir(parents=True)
        for i in range(12):
            noise = generator.integers(0, 120, (32, 40, 3)) + 100 * number
            Image.fromarray(noise.astype(np.uint8)).save(photos / name / f"{i}.jpg")
    return photos


@pytest.fixture(scope="module")
def chain(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    chain = Chain(tmp_path_factory.mktemp("chain"), f"{sys.executable} -m featx")
    result = chain.make("onnx", f"DATA={photos}", "BACKBONE=tiny")
    assert result.returncode == 0, result.stdout + result.stderr
    return chain


def test_nothing_changed_does_nothing_and_says_so(chain, photos):
    before = chain.contents()
    for arguments in ((), (f"DATA={photos}", "BACKBONE=tiny")):
        result = chain.make("onnx", *arguments)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("up to date") == 3
        assert chain.contents() == before


def test_another_head_leaves_the_features(chain):
    before = chain.contents()
    result = chain.make("onnx", "TRAIN=-C 0.1")
    assert result.returncode == 0, result.stderr
    after = chain.contents()
    assert [after[name] == before[name] for name in FILES] == [True, False, False]


def test_a_new_image_runs_everything_with_the_settings_of_the_file(chain, photos):
    before = chain.contents()
    shutil.copy(photos / "ants" / "0.jpg", photos / "ants" / "new.jpg")
    result = chain.make("onnx")
    assert result.returncode == 0, result.stderr
    assert "up to date" not in result.stdout
    assert all(content != before[name] for name, content in chain.contents().items())


def test_an_option_without_data_counts(chain):
    for options in ("BACKBONE=resnet18", "EXTRACT=--image-size 64"):
        result = chain.make("features", options)
        assert result.returncode == 2
        assert "was made with other settings" in result.stderr


def test_without_data_it_says_what_to_do(tmp_path):
    result = Chain(tmp_path, f"{sys.executable} -m featx").make("onnx")
    assert result.returncode == 2
    assert "Say where the images are" in result.stderr


@pytest.fixture
def recorded(tmp_path: Path) -> Chain:
    """A chain that prints the arguments of each call, one to a line."""
    script = tmp_path / "print_arguments"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    script.chmod(0o755)
    (tmp_path / "chain").mkdir()
    return Chain(tmp_path / "chain", str(script))


NAMES = [
    "it's",
    'say "cheese"',
    "two  spaces",
    "`touch ran`",
    "$(touch ran)",
    "$(shell touch ran)",
    "${HOME}",
    "$$",
    "a;touch ran;",
    "';touch ran;'",
    "a|b & c",
    "*",
    "back\\slash",
    "digits:",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["argument", "environment"])
def test_names_are_names(recorded, name, how):
    target = ("features", "BACKBONE=tiny")
    if how == "argument":
        result = recorded.make(*target, f"DATA={name}", f"OUT={name}")
    else:
        result = recorded.make(*target, f"OUT={name}", DATA=name)
    assert result.returncode == 0, result.stderr
    output = ["--output", f"{name}/features.h5"]
    assert result.stdout.splitlines() == ["extract", name, "--backbone", "tiny", *output]
    assert not list(recorded.folder.rglob("ran"))


def test_a_folder_with_the_name_of_an_option_is_a_folder(recorded):
    for name in ("-delete", "--overwrite"):
        result = recorded.make("features", f"DATA={name}")
        output = ["--output", "artifacts/features.h5"]
        assert result.stdout.splitlines() == ["extract", f"./{name}", *output]
    assert (recorded.folder / "Makefile").is_file()


def test_options_are_split_at_spaces_outside_quotes_and_nothing_else(recorded):
    options = (
        "--crop none --weights \"my weights.pth\" 'a b' * `touch ran` $(shell touch ran) $HOME"
    )
    expected = [
        *("--crop", "none", "--weights", "my weights.pth", "a b", "*", "`touch", "ran`"),
        *("$(shell", "touch", "ran)", "$HOME"),
    ]
    result = recorded.make("onnx", f"EXTRACT={options}", f"TRAIN={options}", f"EXPORT={options}")
    lines = result.stdout.splitlines()
    for stage in ("extract", "train-head", "export"):
        assert stage in lines
    assert [lines[i : i + len(expected)] for i, line in enumerate(lines) if line == "--crop"] == [
        expected
    ] * 3
    assert not list(recorded.folder.rglob("ran"))


def test_cleaning_takes_only_what_the_chain_made(recorded):
    out = recorded.folder / "my out"
    out.mkdir()
    for name in (*FILES, "features-resnet50.h5"):
        (out / name).touch()
    assert recorded.make("clean", "OUT=my out").returncode == 0
    assert [path.name for path in out.iterdir()] == ["features-resnet50.h5"]


def test_where_node_is_not_installed_the_tests_go_on(tmp_path):
    for name in ("sh", "dirname", "id"):
        program = shutil.which(name)
        assert program
        (tmp_path / name).symlink_to(program)
    result = subprocess.run(
        ["sh", str(ROOT / "tools" / "clients.sh")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0
    assert result.stderr == (
        "The tests of onnxruntime-web will skip: Node or npm is not installed; make system "
        "installs both, as root.\n"
    )


def test_with_a_cut_the_tuned_head_is_made_and_exported(recorded):
    result = recorded.make("onnx", "DATA=photos", "CUT=stage3", "TUNE=--lr 0.01")
    features, tuned = "artifacts/features-stage3.h5", "artifacts/tuned.safetensors"
    assert result.stdout.splitlines() == [
        *("extract", "photos", "--cut", "stage3", "--output", features),
        *("finetune", features, "--output", tuned, "--lr", "0.01"),
        *("export", tuned, "--onnx", "artifacts/model.onnx"),
    ]
