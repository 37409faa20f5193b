"""What a template is given is text in the result, never markup; and a wheel has the templates."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from featx.reporting import templates

ROOT = Path(__file__).parents[2]
NASTY = "<b>`x`|*y*\n[z](http://a.b)</b>\x1b[2J\u202e\udc80"


def rendered(kind: str, template: str, value: object) -> str:
    return templates._environment(kind).from_string(template).render(value=value)


def test_html_escapes_values():
    text = rendered("html", '<p title="{{ value }}">{{ value }}</p>', f"'\"&{NASTY}")
    assert text.count("<") == 2
    assert "&lt;b&gt;" in text
    assert "&#39;&#34;&amp;" in text
    for character in ("\n", "\x1b", "\u202e", "\udc80"):
        assert character not in text
    assert r"\u202e" in text


def test_markdown_escapes_values():
    text = rendered("md", "{{ value }}", NASTY)
    assert text.startswith(r"\<b\>\`x\`\|\*y\*\\n\[z\]\(http\:\/\/a".replace(r"\/", "/"))
    assert "\n" not in text
    assert templates.markdown_table(["a|b"], [[NASTY], [templates.number(0.5)]]).splitlines() == [
        r"| a\|b |",
        "| --- |",
        f"| {text} |",
        "| 0.5000 |",
    ]


def test_code_in_markdown_cannot_be_left():
    assert rendered("md", "{{ value | code }}", "a`b<\n") == r"`a b<\n`"


@pytest.mark.parametrize("kind", ["html", "md", "jinja"])
def test_a_value_that_is_not_there_is_an_error(kind):
    with pytest.raises(UndefinedError):
        rendered(kind, "{{ value.other }}", {})


def test_numbers():
    assert templates.number(None) == "–"
    assert templates.number(1234.5, ",.1f") == "1,234.5"


def test_a_wheel_has_every_template(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    command = "from setuptools import build_meta; print(build_meta.build_wheel({!r}))"
    source = tmp_path / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    (source / "featx").symlink_to(ROOT / "featx")
    subprocess.run(
        [sys.executable, "-c", command.format(str(tmp_path))],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    folder = ROOT / "featx" / "reporting" / "templates"
    own = {path.relative_to(ROOT).as_posix() for path in folder.iterdir()}
    assert own
    assert own <= packed
