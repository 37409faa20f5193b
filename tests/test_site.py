"""The site as a browser shows it: languages and search. ``make docs`` builds it and runs these."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import pytest
from chromium import CHROMIUM, Tab, in_chromium

SITE = Path(os.environ.get("FEATX_SITE", "no site"))
DOCS = Path(__file__).parent.parent / "docs"
HREF = re.compile(r'<a class="md-header__button" href="([^"]+)" hreflang="(\w+)"')
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SITE.is_dir(), reason="no site: make docs builds it"),
]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def page_of(source: Path) -> Path:
    name = source.relative_to(DOCS).with_suffix(".html")
    return SITE / (name if name.name != "README.html" else name.with_name("index.html"))


def test_each_page_leads_to_itself_in_the_other_language_and_back():
    translated = list(DOCS.rglob("*.zh.md"))
    assert translated
    for source in translated:
        chinese, english = page_of(source), page_of(source.with_suffix("").with_suffix(".md"))
        for page, other, language in ((chinese, english, "en"), (english, chinese, "zh")):
            text = page.read_text("utf-8")
            ((link, own),) = HREF.findall(text)
            assert own == language
            assert (page.parent / link).resolve() == other.resolve()
            assert f'rel="alternate" hreflang="{language}"' in text
        assert '<html lang="zh"' in chinese.read_text("utf-8")


def test_a_page_without_translation_says_so_and_leads_to_those_with_one():
    page = SITE / "images.html"
    text = page.read_text("utf-8")
    ((link, language),) = HREF.findall(text)
    assert language == "zh"
    assert "本页暂无译文" in text
    assert (page.parent / link).is_file()
    assert 'rel="alternate" hreflang' not in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize(
    ("word", "page"),
    [("蜜蜂", "2-ants-and-bees.zh"), ("冻结", "3-frozen-or-scratch.zh"), ("OpenVINO", "clients")],
)
def test_search_finds_the_page_of_a_word_in_either_language(word, page, address):
    async def found(tab: Tab) -> list[str]:
        await tab.wait_for("document.querySelectorAll('.md-search-result__link').length > 0", 30)
        assert all(url.startswith((address, "data:", "blob:")) for url in tab.requests)
        return await tab.run(
            "[...document.querySelectorAll('.md-search-result__link')].map(each => each.href)"
        )

    links = in_chromium(f"{address}/index.html?q={quote(word)}", found)
    assert any(f"{page}.html" in link for link in links), links


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="no mkdocs: make docs installs it")
@pytest.mark.parametrize("link", ["[x](images.md#no-such-heading)", "[x](no-such-page.md)"])
def test_a_dead_link_or_anchor_ends_the_build(link, tmp_path):
    """Pages that the navigation leaves out are found by tests/test_docs.py."""
    for name in ("docs", "tools", "featx"):
        ignored = shutil.ignore_patterns("__pycache__", "web", "bundled")
        shutil.copytree(DOCS.parent / name, tmp_path / name, ignore=ignored)
    shutil.copy(DOCS.parent / "mkdocs.yml", tmp_path)
    page = tmp_path / "docs" / "heads.md"
    page.write_text(f"{page.read_text('utf-8')}\n{link}\n", "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "heads.md" in done.stderr
