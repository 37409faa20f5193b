"""The page in use: real photos, tags and numbers, the camera, formats, and hundreds of images."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from chromium import CHROMIUM, in_chromium
from PIL import Image, ImageCms
from web_pages import answers, chain, draw, require_equal, served

from featx.reporting import classify
from featx.stages.predict import Predictor
from featx.stages.web_page import write_web_page

WEB = Path(classify.__file__).parent / "web"
pytestmark = [
    pytest.mark.skipif(
        not (WEB / "ort.wasm").exists(), reason="onnxruntime-web is not here; make web fetches it"
    ),
    pytest.mark.skipif(
        CHROMIUM is None, reason="Chromium is not installed; make system installs it"
    ),
]
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
READY = "document.getElementById('state')?.textContent === 'Ready.'"


def made_of(folder: Path, labels: list[str], paths: list[Path] | None = None) -> Path:
    """Return a model of images with these labels."""
    paths = paths or draw(folder, len(labels))
    lines = [f'{path},"{label}"' for path, label in zip(paths, labels, strict=True)]
    return chain(folder, "\n".join(["path,label", *lines]))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return a model of two classes, its page in one file, and an image."""
    folder = tmp_path_factory.mktemp("page")
    model = made_of(folder, ["ants", "bees"] * 6)
    page = write_web_page(model, folder / "p.html", single_file=True)
    return model, page.path, folder / "0.jpg"


@pytest.fixture(scope="module")
def of_photos(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """Return a model of 24 real photos, and the photos."""
    folder = data / "hymenoptera_data" / "val"
    paths = [
        path for name in ("ants", "bees") for path in sorted((folder / name).glob("*.jpg"))[:12]
    ]
    labels = [path.parent.name for path in paths]
    return made_of(tmp_path_factory.mktemp("photos"), labels, paths), paths


@pytest.mark.real_data
@pytest.mark.parametrize("way", ["disk", "server"])
def test_real_photos_get_predicts_answers(of_photos, tmp_path, way):
    model, paths = of_photos
    if way == "disk":
        page = write_web_page(model, tmp_path / "page.html", single_file=True).path
        require_equal(answers(page.as_uri(), paths)["found"], model, paths)
        return
    write_web_page(model, tmp_path / "page")
    with served(tmp_path) as root:
        require_equal(answers(f"{root}/page/", paths)["found"], model, paths)


def test_tags_are_shown_with_their_thresholds_and_chosen_as_predict_chooses(tmp_path):
    model = made_of(tmp_path, ["red|big", "red", "big", "", "red|big", "big|round"] * 4)
    paths = [tmp_path / "0.jpg"]
    page = write_web_page(model, tmp_path / "p.html", single_file=True)

    async def use(tab: Any) -> Any:
        await tab.wait_for(READY)
        found = await _shown(tab, paths[0])
        marks = "[...document.querySelectorAll('.bar s')].map((each) => each.title)"
        chosen = "[...document.querySelectorAll('.bar.yes b')].map((each) => each.textContent)"
        return found, await tab.run(marks), await tab.run(chosen)

    found, marks, chosen = in_chromium(page.path.as_uri(), use)
    [expected] = Predictor(model).predict([paths[0]])
    assert sorted(chosen) == sorted(expected.tags or ())
    assert len(marks) == 3
    assert all(mark.startswith("given from ") for mark in marks)
    close = dict(zip(Predictor(model).classes, found, strict=True))
    assert all(abs(close[name] - p) < 1e-3 for name, p in expected.top)


def test_numbers_are_shown_as_predict_gives_them(tmp_path):
    paths = draw(tmp_path, 12)
    rows = [f"{path.name},{number / 3:.3f}" for number, path in enumerate(paths)]
    model = chain(tmp_path, "\n".join(["path,label", *rows]), task="regression")
    page = write_web_page(model, tmp_path / "p.html", single_file=True)

    async def use(tab: Any) -> Any:
        await tab.wait_for(READY)
        found = await _shown(tab, paths[1])
        return found, await tab.run("document.querySelector('.bar span').textContent")

    found, shown = in_chromium(page.path.as_uri(), use)
    [expected] = Predictor(model).predict([paths[1]])
    assert expected.values is not None
    [(_, value)] = expected.values
    assert abs(found[0] - value) < 1e-2 * max(1, abs(value))
    assert float(shown) == pytest.approx(found[0], rel=1e-3)


async def _shown(tab: Any, path: Path) -> list[float]:
    """Drop an image on the page, wait for its answer, and return it."""
    text = base64.b64encode(path.read_bytes()).decode()
    script = f"""(async () => {{
      const bytes = Uint8Array.from(atob({json.dumps(text)}), (c) => c.charCodeAt(0));
      const file = new File([bytes], "image"), carrier = new DataTransfer();
      carrier.items.add(file);
      document.dispatchEvent(new DragEvent("drop", {{ dataTransfer: carrier }}));
      return await featx.predict(file);
    }})()"""
    found: list[float] = await tab.run(script)
    await tab.wait_for("document.querySelectorAll('.bar').length > 0")
    return found


def test_an_image_may_be_chosen_or_pasted_and_the_keyboard_reaches_all(plain):
    model, page, image = plain

    async def answer(tab: Any) -> str:
        await tab.wait_for("document.querySelectorAll('.bar').length > 0")
        shown = str(await tab.run("document.getElementById('results').textContent"))
        await tab.run("document.getElementById('results').replaceChildren()")
        return shown

    async def use(tab: Any) -> Any:
        await tab.wait_for(READY)
        reached, shown = [], []
        for _ in range(3):
            for kind in ("keyDown", "keyUp"):
                await tab.send(
                    "Input.dispatchKeyEvent", type=kind, key="Tab", windowsVirtualKeyCode=9
                )
            reached.append(
                await tab.run(
                    "document.activeElement.matches(':focus-visible') && "
                    "(document.activeElement.id || document.activeElement.tagName)"
                )
            )
        element = await tab.send("Runtime.evaluate", expression="document.getElementById('file')")
        own = element["result"]["objectId"]
        await tab.send("DOM.setFileInputFiles", files=[str(image)], objectId=own)
        shown.append(await answer(tab))
        await tab.run(
            """(() => {
              const carrier = new DataTransfer();
              carrier.items.add(document.getElementById("file").files[0]);
              document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: carrier }));
            })()"""
        )
        shown.append(await answer(tab))
        return reached, shown, tab.errors

    reached, shown, errors = in_chromium(page.as_uri(), use, flags=CAMERA)
    assert reached == ["file", "camera", "SUMMARY"]
    [expected] = Predictor(model).predict([image])
    assert all(text.startswith(str(expected.label)) for text in shown)
    assert not errors


def test_the_camera_answers_until_it_is_stopped_or_the_tab_is_hidden(plain):
    async def use(tab: Any) -> Any:
        await tab.wait_for(READY)
        await tab.run(
            """(() => {
              globalThis.streams = [];
              const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
              navigator.mediaDevices.getUserMedia = async (wanted) => {
                const stream = await ask(wanted);
                streams.push(stream);
                return stream;
              };
            })()"""
        )
        seen = []
        for stop in (
            "document.getElementById('camera').click()",
            "Object.defineProperty(document, 'hidden', { value: true, configurable: true }), "
            "document.dispatchEvent(new Event('visibilitychange'))",
        ):
            await tab.run("document.getElementById('results').replaceChildren()")
            click = "document.getElementById('camera').click();"
            await tab.run(click + click)  # the second before the first has a stream
            await tab.wait_for("document.querySelectorAll('.bar').length > 0")
            seen.append(await tab.run("document.getElementById('state').textContent"))
            await tab.run(stop)
            await tab.wait_for(
                "streams.at(-1).getTracks().every((each) => each.readyState === 'ended')", 10
            )
            assert await tab.run("document.getElementById('video').hidden")
        return seen, await tab.run("streams.length"), tab.errors

    seen, count, errors = in_chromium(plain[1].as_uri(), use, flags=CAMERA)
    assert all(text.endswith("ms an image") for text in seen)
    assert count == 2
    assert not errors


def test_an_image_that_comes_while_a_frame_is_classified_takes_the_cameras_place(plain):
    model, page, image = plain
    text = base64.b64encode(image.read_bytes()).decode()
    drop_at_the_first_frame = f"""(() => {{
      const context = CanvasRenderingContext2D.prototype, draw = context.drawImage;
      context.drawImage = function (...given) {{
        context.drawImage = draw;
        const bytes = Uint8Array.from(atob({json.dumps(text)}), (c) => c.charCodeAt(0));
        const carrier = new DataTransfer();
        carrier.items.add(new File([bytes], "image"));
        document.dispatchEvent(new DragEvent("drop", {{ dataTransfer: carrier }}));
        draw.apply(this, given);
      }};
      document.getElementById("camera").click();
    }})()"""

    async def use(tab: Any) -> Any:
        await tab.wait_for(READY)
        await tab.run(drop_at_the_first_frame)
        await tab.wait_for("!document.getElementById('picture').hidden", 20)
        await tab.wait_for("/^\\d+ ms$/.test(document.getElementById('state').textContent)", 20)
        hidden = await tab.run("document.getElementById('video').hidden")
        return hidden, await tab.run("document.getElementById('results').textContent")

    hidden, shown = in_chromium(page.as_uri(), use, flags=CAMERA)
    assert hidden
    assert shown.startswith(str(Predictor(model).predict([image])[0].label))


def test_without_a_camera_to_be_had_the_page_says_so_and_classifies_on(plain):
    model, page, image = plain

    async def use(tab: Any) -> Any:
        await tab.wait_for(READY)
        await tab.run("document.getElementById('camera').click()")
        await tab.wait_for("document.getElementById('state').classList.contains('bad')", 20)
        said = await tab.run("document.getElementById('state').textContent")
        return said, await _shown(tab, image)

    said, found = in_chromium(page.as_uri(), use, flags=("--deny-permission-prompts",))
    assert said.startswith("The camera cannot be used: ")
    require_equal({image.name: found}, model, [image])


def test_over_http_from_elsewhere_there_is_no_camera_and_all_else_works(plain, tmp_path):
    model, _, image = plain
    write_web_page(model, tmp_path / "page")
    with Image.open(image) as opened:
        opened.save(tmp_path / "photo.tiff")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))

    async def use(tab: Any) -> Any:
        await tab.wait_for(READY)
        said = []
        for name in ("photo.tiff", "photo.heic"):
            text = base64.b64encode((tmp_path / name).read_bytes()).decode()
            script = (
                f"featx.predict(new File([Uint8Array.from(atob({json.dumps(text)}), "
                f"(c) => c.charCodeAt(0))], {json.dumps(name)})).catch((error) => error.message)"
            )
            said.append(await tab.run(script))
        hidden = await tab.run("document.getElementById('camera').hidden")
        secure = await tab.run("isSecureContext")
        return hidden, secure, said, await _shown(tab, image)

    with served(tmp_path) as root:
        port = root.rpartition(":")[2]
        hidden, secure, said, found = in_chromium(
            *(f"http://elsewhere.test:{port}/page/", use),
            flags=("--host-resolver-rules=MAP elsewhere.test 127.0.0.1",),
        )
    assert not secure
    assert hidden
    assert [text.split(" as an image")[0] for text in said] == [
        "This browser cannot read “photo.tiff”",
        "This browser cannot read “photo.heic”",
    ]
    require_equal({image.name: found}, model, [image])


def test_colour_profiles_gamma_cmyk_and_animations_are_read_as_predict_reads_them(plain, tmp_path):
    model, page, source = plain
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    image.save(tmp_path / "profile.jpg", quality=95, icc_profile=_profile_of_swapped_colours())
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    image.save(tmp_path / "still.gif")
    image.save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", image.size)])
    image.convert("L").save(tmp_path / "grey.png")
    _with_gamma(image, tmp_path / "gamma.png")
    paths = sorted(tmp_path.glob("*.*"))
    require_equal(answers(page.as_uri(), paths)["found"], model, paths)


def _profile_of_swapped_colours() -> bytes:
    """Return a profile by which red looks green: who applies it gets another picture."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = {content[at : at + 4].decode(): at for at in range(132, 132 + 12 * content[131], 12)}
    red, green = entries["rXYZ"], entries["gXYZ"]
    content[red : red + 4], content[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(content)


def _with_gamma(image: Image.Image, path: Path) -> None:
    """Write a PNG that asks for another gamma."""
    file = io.BytesIO()
    image.save(file, "PNG")
    content, chunk = file.getvalue(), b"gAMA" + struct.pack(">I", 100_000)
    extra = struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content[:33] + extra + content[33:])


def test_one_thread_answers_where_the_server_would_allow_several(plain, tmp_path):
    model, _, image = plain
    write_web_page(model, tmp_path / "page")
    isolating = {
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Embedder-Policy": "require-corp",
    }

    async def use(tab: Any) -> Any:
        count = "globalThis.begun = 0; Worker = class extends Worker { %s };"
        count %= "constructor(...all) { begun++; super(...all); }"
        await tab.send("Page.addScriptToEvaluateOnNewDocument", source=count)
        await tab.send("Page.reload")
        await tab.wait_for(f"globalThis.begun !== undefined && {READY}")
        found = await _shown(tab, image)
        return await tab.run("crossOriginIsolated"), await tab.run("begun"), found

    with served(tmp_path, headers=isolating) as root:
        isolated, begun, found = in_chromium(f"{root}/page/", use)
    assert (isolated, begun) == (True, 0)
    require_equal({image.name: found}, model, [image])


def test_images_are_drawn_in_their_own_size_the_graph_resizes():
    script = (Path(classify.__file__).parent / "templates" / "classify.js").read_text("utf-8")
    assert script.count("drawImage(") == script.count("drawImage(source, 0, 0)") == 1
    assert "resizeWidth" not in script
    assert "imageOrientation" not in script


@pytest.mark.slow
def test_hundreds_of_images_need_no_more_memory_than_twenty(plain):
    _, page, image = plain

    async def use(tab: Any) -> tuple[float, float]:
        await tab.wait_for(READY)
        for _ in range(20):
            await _shown(tab, image)
        first = await tab.memory()
        text = base64.b64encode(image.read_bytes()).decode()
        await tab.run(
            f"""(async () => {{
              const bytes = Uint8Array.from(atob({json.dumps(text)}), (c) => c.charCodeAt(0));
              for (let i = 0; i < 480; i++) await featx.predict(new File([bytes], "image"));
            }})()"""
        )
        return first, await tab.memory()

    async def empty(tab: Any) -> float:
        await tab.wait_for("document.readyState === 'complete'")
        found: float = await tab.memory()
        return found

    first, last = in_chromium(page.as_uri(), use)
    assert last < first + 50
    without = in_chromium("data:text/html,nothing", empty)
    assert without < first < without + 4 * page.stat().st_size / 1e6 + 150
