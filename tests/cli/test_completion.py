"""The Tab key: names of backbones, layers and files, at once and without heavy libraries."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from commands import featx_cli

from featx.backbones.catalog import build_skeleton
from featx.backbones.network import layer_names
from featx.backbones.table import backbone_table, known_layers

_HEAVY = "torch,h5py,onnxruntime,numpy,onnx,sklearn,scipy"
_TAB = f"""
import sys
from featx.cli import main
try:
    main(prog_name="featx")
finally:
    loaded = [name for name in {_HEAVY!r}.split(",") if name in sys.modules]
    assert not loaded, loaded
"""


def tab(words: str, at: int, folder: Path = Path()) -> list[str]:
    """Return what bash gets for a Tab behind some words."""
    own = {"_FEATX_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    done = subprocess.run(
        [sys.executable, "-c", _TAB],
        env=os.environ | own,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("words", "at", "first"),
    [
        ("featx tra", 1, "plain,train-head"),
        ("featx extract -b ResNet1", 3, "plain,resnet101"),
        ("featx backbones mobilenet_v3", 2, "plain,mobilenet_v3_large"),
        ("featx extract -b vgg16 --layer feat", 5, "plain,features.0"),
        ("featx finetune --cut layer3", 3, "plain,layer3"),
        ("featx extract -b resnet50 -w IM", 5, "file,IM"),
        ("featx extract my\\ phot", 2, "file,my phot"),
        ("featx predict my\\ model.onnx holi", 3, "file,holi"),
        ("featx train-head --solver ce", 3, "plain,centroid"),
    ],
)
def test_tab_offers_names_without_loading_heavy_libraries(words, at, first):
    assert tab(words, at)[0] == first


def test_tab_takes_little_time():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    tab("featx extract -b res", 3)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Without contention it takes 0.11 s; where no compiled modules are kept, twice as long.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.6


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell):
    done = featx_cli("completion", shell)
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"_FEATX_COMPLETE={shell}_complete" in done.stdout


def test_the_script_of_bash_completes(tmp_path):
    script = tmp_path / "featx.bash"
    script.write_text(featx_cli("completion", "bash").stdout)
    (tmp_path / "featx").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m featx "$@"\n')
    (tmp_path / "featx").chmod(0o755)
    lines = (
        f'source "{script}"',
        "COMP_WORDS=(featx extract -b resnet3) COMP_CWORD=3",
        "_featx_completion featx",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    )
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("resnet34\n", "")


@pytest.mark.parametrize("name", ["tiny", "resnet18", "vit_b_16"])
def test_recorded_layers_are_those_of_the_network(name):
    row = next(row for row in backbone_table() if row.name == name)
    layers = layer_names(build_skeleton(name, row.image_size), depth=2)
    assert known_layers(name)[0] == layers, "run tools/backbone_layers.py"


def test_every_backbone_but_timms_has_recorded_layers():
    missing = [row.name for row in backbone_table() if not any(known_layers(row.name))]
    assert all(name.startswith("timm/") for name in missing)
