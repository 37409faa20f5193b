"""The page of an audit: whole in itself, small enough, and its marks are those of the table."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from caches import far_apart, write_cache, write_labels
from commands import featx_cli
from PIL import Image

from featx.artifact.cells import table_rows
from featx.errors import ArtifactExists, ConfigError
from featx.extraction.options import ExtractOptions
from featx.features.marks import read_marks
from featx.reporting import summary
from featx.stages.audit import audit, write_audit_page, write_findings
from featx.stages.audit.findings import COLUMNS
from featx.stages.extract import extract
from featx.training.samples import read_excluded

CHROMIUM = shutil.which("chromium")
NASTY = "=1+1 <!--<script>'\"&,x.png"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of two colours with a wrong label, a copy and hostile names; the feature file."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(24):
        name = ("blue", "red")[number % 2]
        colour = {"blue": (40, 40, 200), "red": (200, 40, 40)}[name]
        pixels = np.clip(colour + random.normal(0, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
        name = "blue" if number == 5 else name
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name / (NASTY if number == 5 else f"{number}.png"))
    shutil.copy(folder / "red" / "3.png", folder / "red" / "copy.png")
    path = folder.parent / f"{folder.name}-out" / "f.h5"
    extract(str(folder), path, ExtractOptions(backbone="tiny"))
    return path


def data_of(page):
    (found,) = re.findall(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    return json.loads(found)


def test_the_page_has_all_findings_and_their_pictures(photos, tmp_path):
    report = audit(photos)
    page = write_audit_page(report, tmp_path / "audit.html")
    data = data_of(page)
    assert next(row[0] for row in data["rows"] if row[1] == "label") == f"blue/{NASTY}"
    assert len(data["rows"]) == len(report.findings) > 1
    shown = data["images"]["red/copy.png"]
    jpeg = base64.b64decode(shown["picture"].partition(",")[2])
    assert jpeg.startswith(b"\xff\xd8")
    assert (shown["label"], shown["split"]) == ("red", "train")
    assert [kind["name"] for kind in data["kinds"]] == ["label", "copy"]


def test_the_page_asks_nothing_of_others_and_names_cannot_end_a_script(photos, tmp_path):
    text = write_audit_page(audit(photos), tmp_path / "a.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]+\.", text)
    assert "default-src 'none'" in text
    (start,) = re.findall(r'id="data">(.*?)</script>', text)
    assert "<" not in start
    assert text.count("<script") == text.count("</script>") == 2


def test_where_the_source_has_gone_the_page_says_so(tmp_path, caplog):
    path = write_cache(tmp_path / "f.h5", **far_apart(), contents=np.arange(240) // 2 + 1)
    page = write_audit_page(audit(path), tmp_path / "a.html")
    assert "without pictures" in page.read_text()
    assert "source=" in caplog.text
    assert not any("picture" in image for image in data_of(page)["images"].values())


def test_pages_of_featx_are_replaced_and_nothing_else(photos, tmp_path):
    report, page = audit(photos), tmp_path / "a.html"
    for _ in range(2):
        write_audit_page(report, page)
    page.write_text("mine")
    with pytest.raises(ArtifactExists):
        write_audit_page(report, page)
    with pytest.raises(ConfigError):
        write_audit_page(report, photos)
    assert page.read_text() == "mine"


def test_a_page_of_many_findings_stays_small_and_says_what_it_leaves_out(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for number in range(200):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "photos" / f"{number:04d}.jpg")
    count = 12_000
    contents = np.arange(count) % (count // 2) + 1
    made = {"features": np.zeros((count, 2), np.float32), "labels": np.full(count, -1)}
    splits = np.zeros(count, np.uint8)
    splits[:100] = 1
    path = write_cache(
        tmp_path / "f.h5", **made, splits=splits, contents=contents, source=str(tmp_path / "photos")
    )
    report = audit(path)
    monkeypatch.setattr(summary, "thumbnail", lambda _: bytes(200_000))
    monkeypatch.setattr(summary, "NO_DIGEST", None)
    monkeypatch.setattr("featx.images.reading.content_digest", lambda _: None)
    page = write_audit_page(report, tmp_path / "a.html")
    assert len(report.findings) == 6000
    assert page.stat().st_size < 25e6
    data = data_of(page)
    assert len(data["rows"]) == 5000
    assert sum(row[1] == "leak" for row in data["rows"]) == 100  # the smaller kind has all of its
    assert 30 < sum("picture" in image for image in data["images"].values()) < 100
    assert "5,000 of 6,000 findings" in page.read_text()
    assert re.search(r"\d\d of [\d,]+ images have a picture", page.read_text())


def test_the_command_writes_the_page_beside_the_features_unless_told(photos, tmp_path):
    copied = tmp_path / "f.h5"
    shutil.copy(photos, copied)
    assert "audit.html" in featx_cli("audit", copied).output
    assert (tmp_path / "audit.html").exists()
    (tmp_path / "audit.html").unlink()
    assert featx_cli("audit", copied, "--no-html").exit_code == 0
    assert not (tmp_path / "audit.html").exists()
    assert featx_cli("audit", copied, "--html", tmp_path / "b.html").exit_code == 0
    assert (tmp_path / "b.html").exists()


def in_chromium(page, script, tmp_path):
    """Return what a script leaves in the page's title, after the page has run."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    text = page.read_text(encoding="utf-8")
    changed = tmp_path / "scripted.html"
    end = f"<script>\n{script}\n</script>\n</body>"
    changed.write_text(text.replace("</body>", end), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", changed.as_uri()]
    made = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return made.stdout.decode()


def test_marks_made_by_keys_are_read_by_training_and_relabel(photos, tmp_path):
    report = audit(photos)
    page = write_audit_page(report, tmp_path / "audit.html")
    write_findings(report, tmp_path / "plain.csv")
    script = """
    const plain = table();
    const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key }));
    press("l");
    off.add("label"); show();
    press("d"); press("ArrowUp"); press("n"); press("ArrowUp"); press("ArrowLeft"); press("k");
    document.body.textContent = "TABLES" + JSON.stringify([plain, table()]) + "END";
    """
    dom = in_chromium(page, script, tmp_path)
    (found,) = re.findall("TABLES(.*)END", html.unescape(dom))
    plain, marked = json.loads(found)
    assert plain.encode() == (tmp_path / "plain.csv").read_bytes()
    table = tmp_path / "audit.csv"
    table.write_text(marked, newline="")
    assert table.read_text().splitlines()[0] == ",".join(COLUMNS)
    marks = {(mark.sample_id, mark.kind): mark for mark in read_marks(table)}
    assert marks[f"blue/{NASTY}", "label"].corrected == "red"
    (dropped,) = read_excluded(table, photos)
    assert dropped == "red/copy.png"
    assert marks["red/copy.png", "copy"].different
    assert marks["red/3.png", "copy"].keep  # the other picture of the pair
    assert marks["red/3.png", "copy"].other == "red/copy.png"
    result = featx_cli("relabel", table, "--features", photos, "-o", tmp_path / "r.csv")
    assert result.exit_code == 0, result.output


def test_a_label_may_be_typed_and_marks_taken_back(photos, tmp_path):
    page = write_audit_page(audit(photos), tmp_path / "audit.html")
    script = """
    const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key }));
    press("c");
    const input = document.querySelector(".acts input");
    input.value = " a \\"new\\", one ";
    input.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
    press("d"); press("u");
    document.body.textContent = "TABLE" + JSON.stringify([table(), now, marks.size]) + "END";
    """
    (found,) = re.findall("TABLE(.*)END", html.unescape(in_chromium(page, script, tmp_path)))
    text, now, size = json.loads(found)
    (tmp_path / "audit.csv").write_text(text, newline="")
    marks = [mark for mark in read_marks(tmp_path / "audit.csv") if any(mark.cells)]
    assert [mark.corrected for mark in marks] == ['a "new", one']
    assert (now, size) == (1, 1)


def test_two_tags_of_one_image_are_marked_apart(tmp_path):
    random = np.random.default_rng(0)
    has = random.random((200, 3)) < 0.4
    has[7] = [True, True, False]
    features = (8 * has + random.normal(size=(200, 3))).astype(np.float32)
    names = np.array(["big", "old", "red"])
    labels = ["|".join(names[own]) or "|" for own in has]
    labels[7] = "|"  # both lack
    path = write_labels(tmp_path / "f.h5", features, labels, np.arange(200) % 5 // 4)
    page = write_audit_page(audit(path), tmp_path / "audit.html")
    script = """
    const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key }));
    shown = cards.filter((card) => card.cells[0].id === "0007.jpg");
    press("l"); press("k");
    document.body.textContent = "TABLE" + JSON.stringify(table()) + "END";
    """
    (found,) = re.findall("TABLE(.*)END", html.unescape(in_chromium(page, script, tmp_path)))
    (tmp_path / "audit.csv").write_text(json.loads(found), newline="")
    marks = [mark for mark in read_marks(tmp_path / "audit.csv") if any(mark.cells)]
    assert {mark.note for mark in marks} == {"big", "old"}
    assert [mark.cells for mark in marks] == [("", "", marks[0].note), ("", "false", "")]


def test_no_error_is_met_and_a_filter_shows_one_class(photos, tmp_path):
    page = write_audit_page(audit(photos), tmp_path / "audit.html")
    script = """
    window.onerror = (text) => { document.title = `ERROR ${text}`; };
    const all = document.querySelectorAll(".card").length;
    $("class").value = "=blue"; show();
    const blue = document.querySelectorAll(".card").length;
    document.title = `cards ${all} ${blue}`;
    """
    dom = in_chromium(page, script, tmp_path)
    (found,) = re.findall(r"cards (\d+) (\d+)", dom)
    assert int(found[0]) > int(found[1]) >= 1


def test_a_group_of_very_many_copies_is_one_card_that_comes_last(tmp_path):
    contents = np.arange(240) + 1
    contents[:120:2] = 1  # 60 copies of one image
    contents[200:202] = 7  # two of another
    made = far_apart()
    made["splits"][:] = 0
    path = write_cache(tmp_path / "f.h5", **made | {"labels": np.full(240, -1)}, contents=contents)
    page = write_audit_page(audit(path), tmp_path / "audit.html")
    script = """
    const last = [...document.querySelectorAll(".card")].map((card) =>
      [card.querySelectorAll(".cell").length, card.textContent.includes("57 more")]);
    document.title = "CARDS" + JSON.stringify(last) + "END";
    """
    (found,) = re.findall("<title>CARDS(.*)END", in_chromium(page, script, tmp_path))
    assert json.loads(found)[-1] == [3, True]
    assert json.loads(found)[0] == [2, False]


def test_of_a_leak_the_training_image_is_the_one_to_drop(tmp_path):
    contents = np.arange(240) + 1
    contents[1] = contents[0]
    made = far_apart()
    made["splits"][:] = 0
    made["splits"][1] = 2
    path = write_cache(tmp_path / "f.h5", **made | {"labels": np.full(240, -1)}, contents=contents)
    page = write_audit_page(audit(path), tmp_path / "audit.html")
    script = """
    document.dispatchEvent(new KeyboardEvent("keydown", { key: "d" }));
    document.body.textContent = "TABLE" + JSON.stringify(table()) + "END";
    """
    (found,) = re.findall("TABLE(.*)END", html.unescape(in_chromium(page, script, tmp_path)))
    (tmp_path / "audit.csv").write_text(json.loads(found), newline="")
    assert read_excluded(tmp_path / "audit.csv", path) == ("0000.jpg",)


def test_marks_of_an_earlier_table_are_carried_on_and_not_asked_again(photos, tmp_path):
    first = tmp_path / "first.csv"
    write_findings(audit(photos), first)
    _, rows = table_rows(first.read_text())
    cells = {f"{row['kind']} {row['sample_id']}": row for row in rows}
    cells["copy red/copy.png"]["different"] = "true"
    labels = [name for name in cells if name.startswith("label")]
    cells[labels[0]] |= {"drop": "true", "corrected": "red"}
    for name in labels[1:]:
        cells[name]["drop"] = "false"
    lines = (",".join(f'"{cell}"' for cell in row.values()) for row in _quoted(cells))
    marked = tmp_path / "marked.csv"
    marked.write_text("\n".join([",".join(COLUMNS), *lines]))
    report = audit(photos, marks=marked)
    assert [each.kind for each in report.findings] == ["label"]
    assert report.findings[0].marks == ("", "true", "red")
    again = tmp_path / "again.csv"
    write_findings(report, again)
    before = {mark[:3]: mark.cells for mark in read_marks(marked)}
    assert {mark[:3]: mark.cells for mark in read_marks(again)} == before
    assert audit(photos, marks=again).findings == report.findings
    page = write_audit_page(report, tmp_path / "audit.html")
    script = 'document.body.textContent = "TABLE" + JSON.stringify(table()) + "END";'
    (found,) = re.findall("TABLE(.*)END", html.unescape(in_chromium(page, script, tmp_path)))
    assert json.loads(found).encode() == again.read_bytes()


def _quoted(cells):
    return ({k: v.replace('"', '""') for k, v in row.items()} for row in cells.values())
