"""Predicting: one answer for every way to give an image."""

from __future__ import annotations

import copy
import csv
import io
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
from commands import featx_cli
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from featx.classifier.prediction import given_tags
from featx.classifier.seal import seal
from featx.classifier.session import Classifier, open_classifier
from featx.cli import main
from featx.errors import ArtifactInvalid, ArtifactMissing, ConfigError, ImageError
from featx.heads.tasks.single_label import best_classes
from featx.images.decode import MAX_PIXELS, decode_image
from featx.images.preprocess import resize
from featx.images.sources.folder import find_images
from featx.stages import predict as stage
from featx.stages.evaluate import evaluate
from featx.stages.predict import Prediction, Predictor
from featx.stages.train import train_head
from featx.training.options import TrainOptions


def test_every_way_to_give_an_image_gives_the_same_answer(predictor, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    with Image.open(path) as image:
        answers = predictor.predict([path, str(path), path.read_bytes(), image, pixels])
    assert len({answer.top for answer in answers}) == 1
    assert [answer.image for answer in answers] == [
        *(str(path), str(path), "image 2", "image 3", "image 4")
    ]


def test_probabilities_are_sorted_and_sum_to_one(predictor):
    pixels = np.full((9, 9, 3), 128, np.uint8)
    (prediction,) = predictor.predict([pixels], top_k=100)
    probabilities = [p for _, p in prediction.top]
    assert len(probabilities) == 10
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert prediction.label == prediction.top[0][0]
    assert prediction.probability == probabilities[0]


def test_top_k_limits_the_classes(predictor):
    pixels = np.zeros((8, 8, 3), np.uint8)
    (prediction,) = predictor.predict([pixels], top_k=2)
    assert len(prediction.top) == 2
    with pytest.raises(ConfigError, match="top_k must be at least 1"):
        predictor.predict([pixels], top_k=0)


def test_exif_rotation_is_applied(predictor):
    pixels = np.random.default_rng(1).integers(0, 256, (20, 36, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    Image.fromarray(np.rot90(pixels)).save(turned, "PNG", exif=exif)
    a, b = predictor.predict([pixels, turned.getvalue()], top_k=10)
    assert a.top == b.top


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (b"not an image", ImageError, "image 0.*not an image"),
        ("missing.jpg", ImageError, "missing.jpg.*cannot be read"),
        (np.zeros((5, 5), np.uint8), ConfigError, r"\(height, width, 3\) uint8"),
        (np.zeros((5, 5, 3), np.float32), ConfigError, "float32"),
        (np.zeros((0, 5, 3), np.uint8), ConfigError, "image 0"),
        (np.zeros((2, 500, 3), np.uint8), ImageError, "too narrow"),
        (12, ConfigError, "expected a path"),
    ],
)
def test_what_is_no_image(predictor, image, error, message):
    with pytest.raises(error, match=message):
        predictor.predict([image])  # type: ignore[list-item]


def test_one_image_without_brackets_is_explained(predictor):
    with pytest.raises(ConfigError, match="brackets"):
        predictor.predict("holiday.jpg")


def test_predict_each_goes_on_after_a_bad_image(predictor):
    good = np.zeros((8, 8, 3), np.uint8)
    answers = list(predictor.predict_each([good, b"bad", good]))
    assert [answer.error is None for answer in answers] == [True, False, True]
    assert answers[1] == Prediction("image 1", (), answers[1].error)
    assert answers[1].label is None
    assert answers[1].probability is None


def test_predict_each_reads_images_one_by_one(predictor):
    asked: list[int] = []

    def images() -> object:
        for i in range(3):
            asked.append(i)
            yield np.zeros((8, 8, 3), np.uint8)

    stream = predictor.predict_each(images())  # type: ignore[arg-type]
    next(stream)
    assert asked == [0]


def test_a_missing_model_says_how_to_make_one(tmp_path):
    with pytest.raises(ArtifactMissing, match="featx export"):
        Predictor(tmp_path / "model.onnx")


def test_every_bad_image_has_its_line(predictor, tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    Image.new("RGB", (90, 90)).save(folder / "good.jpg")
    (folder / "cut.jpg").write_bytes((folder / "good.jpg").read_bytes()[:-30])
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "empty.jpg").touch()
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    names = [*find_images([folder]), "x" * 300 + ".jpg", "a\0.jpg", str(tmp_path / "gone.jpg")]
    answers = list(predictor.predict_each(names))
    assert [answer.image for answer in answers] == [str(name) for name in names]
    reasons = {Path(answer.image).name: answer.error for answer in answers}
    assert reasons.pop("good.jpg") is None
    assert len(reasons) == 9
    assert "truncated" in str(reasons["cut.jpg"])
    assert reasons["dangling.jpg"] == "cannot be read: No such file or directory."
    assert reasons["empty.jpg"] == "the file is empty."
    assert "Too many levels" in str(reasons["loop.jpg"])
    assert reasons["pipe.jpg"] == reasons["zero.jpg"] == "not a regular file."
    assert "File name too long" in str(reasons["x" * 300 + ".jpg"])


def test_larger_images_can_be_refused(model):
    pixels = np.zeros((20, 30, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    images = [pixels, Image.fromarray(pixels), buffer.getvalue()]
    for answer in Predictor(model, max_pixels=599).predict_each(images):
        assert answer.error == "30×20 pixels is more than the 599 allowed."
    for answer in Predictor(model, max_pixels=600).predict_each(images):
        assert answer.error is None
    with pytest.raises(ConfigError, match="max_pixels must be 1 to"):
        Predictor(model, max_pixels=0)


def test_pixels_need_not_lie_in_order(predictor):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    views = [pixels[::-1, :, ::-1], pixels.transpose(1, 0, 2), pixels[::2, 1:]]
    for answer, copied in zip(
        predictor.predict(views), predictor.predict([view.copy() for view in views]), strict=True
    ):
        assert answer.top == copied.top


class TestManyImages:
    """Lists long enough for a session of one thread, beside the same images one by one."""

    def test_the_answers_of_a_list_and_of_its_images_alone_agree(self, predictor, images):
        alone = list(predictor.predict_each(iter(images)))
        lists = (
            predictor.predict_each(images),
            predictor.predict_each(images[:9]),
            predictor.predict_each(iter(images), ahead=True),
            predictor.predict_each(images, ahead=False),
            Predictor(predictor._path, threads=1).predict_each(images),
            Predictor(predictor._path, threads=3).predict_each(images),
        )
        for answers in map(list, lists):
            assert [a.image for a in answers] == list(map(str, images))[: len(answers)]
            require_close(answers, alone[: len(answers)])

    def test_one_by_one_is_as_exact_as_resized_by_pillow(self, predictor, images):
        classifier = open_classifier(predictor._path, threads=1)
        answers = predictor.predict(images, top_k=10)
        for path, answer in zip(images, answers, strict=True):
            pixels = resize(decode_image(path.read_bytes(), sample_id=""), classifier.preprocess)
            (probabilities,) = classifier.probabilities(classifier.prepare(pixels)[None])
            expected = dict(zip(classifier.classes, probabilities, strict=True))
            assert dict(answer.top) == pytest.approx(expected, abs=1e-6)

    def test_images_of_all_sizes_are_run_together(self, predictor, images, monkeypatch):
        sizes: list[int] = []
        run = Classifier.run

        def count(self: Classifier, batch: np.ndarray) -> object:
            sizes.append(len(batch))
            return run(self, batch)

        monkeypatch.setattr(Classifier, "run", count)
        predictor.predict(images)
        assert sorted(sizes) == [8, 16, 16]
        sizes.clear()
        predictor.predict(images[:5])
        assert sizes == [5]

    @pytest.mark.parametrize("count", [5, 40])
    def test_bad_images_keep_their_places(self, predictor, images, count):
        images = images[:count]
        for position in (0, 3, count - 1):
            images[position].write_bytes(b"no image")
        answers = list(predictor.predict_each(images))
        bad = [i for i, answer in enumerate(answers) if answer.error]
        assert bad == [0, 3, count - 1]
        assert [answer.image for answer in answers] == list(map(str, images))

    def test_nothing_but_bad_images(self, predictor):
        answers = list(predictor.predict_each([b"no image"] * 40))
        assert all(answer.error and not answer.top for answer in answers)
        assert list(predictor.predict_each([])) == []

    def test_what_is_no_image_is_an_error_in_a_long_list_too(self, predictor):
        with pytest.raises(ConfigError, match="image 35: expected a path"):
            list(predictor.predict_each([np.zeros((8, 8, 3), np.uint8)] * 35 + [12]))  # type: ignore[list-item]

    def test_of_a_stream_only_so_many_images_are_held_at_a_time(self, predictor, monkeypatch):
        monkeypatch.setattr("featx.stages.predict._MAX_BATCH_BYTES", 4 * 60 * 60 * 3)
        alive, most = 0, 0

        def images() -> Iterator[np.ndarray]:
            nonlocal alive, most
            for i in range(200):
                image = np.full((60, 60, 3), i, np.uint8)
                weakref.finalize(image, gone)
                alive += 1
                most = max(most, alive)
                yield image
                del image

        def gone() -> None:
            nonlocal alive
            alive -= 1

        assert len(list(predictor.predict_each(images(), ahead=True))) == 200
        assert 4 < most <= 4 * 6  # groups of four: two at work, two waiting, one being filled

    def test_leaving_early_ends_the_threads(self, predictor, images):
        before = threading.active_count()
        stream = predictor.predict_each(images * 5)
        next(stream)
        assert threading.active_count() > before
        stream.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before

    def test_several_threads_may_ask_at_once(self, model, images):
        opened = []
        load = stage.load_classifier

        def count(*args: object, **options: object) -> object:
            opened.append(options["threads"])
            return load(*args, **options)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage, "load_classifier", count)
            predictor = Predictor(model, threads=2)
            with ThreadPoolExecutor(6) as pool:
                lists = [images if i % 2 else images[i : i + 9] for i in range(12)]
                answers = list(pool.map(predictor.predict, lists))
        assert opened == [2, 1]
        alone = {answer.image: answer for answer in predictor.predict_each(iter(images))}
        for asked, answered in zip(lists, answers, strict=True):
            require_close(answered, [alone[str(path)] for path in asked])

    def test_the_file_may_go_once_it_is_open(self, model, images, tmp_path):
        copy = tmp_path / "m.onnx"
        shutil.copy(model, copy)
        predictor = Predictor(copy)
        copy.unlink()
        assert len(predictor.predict(images)) == 40


class TestContracts:
    @pytest.mark.parametrize(
        "contract",
        [("crop", "logits"), ("tensor", "probabilities", "features"), ("image", "top-3")],
        ids="-".join,
    )
    def test_files_of_any_contract_answer_alike(self, predictor, exported, images, contract):
        other = Predictor(exported(*contract), threads=2)
        assert other.classes == predictor.classes
        expected = predictor.predict(images)
        for asked in (images, images[:5], images[:1]):
            require_close(other.predict(asked), expected[: len(asked)])

    def test_a_file_of_the_best_classes_gives_no_more_than_it_has(
        self, predictor, exported, images
    ):
        other = Predictor(exported("image", "top-3"))
        for top_k, count in ((1, 1), (3, 3), (5, 3)):
            (answer,) = other.predict(images[:1], top_k=top_k)
            require_close([answer], predictor.predict(images[:1], top_k=count))

    def test_a_file_of_features_says_what_it_lacks(self, exported):
        with pytest.raises(
            ConfigError, match=r"gives features, but no classes; export .*outputs='"
        ):
            Predictor(exported("image", "features"))


class TestProvidersAndThreads:
    def test_the_cpu_by_name_answers_as_it_does_unnamed(self, predictor, images):
        named = Predictor(predictor._path, providers=["CPUExecutionProvider"])
        require_close(named.predict(images), predictor.predict(images))

    def test_a_line_says_which_run_where_any_are_named(self, model, caplog):
        caplog.set_level("INFO", "featx")
        Predictor(model)
        assert "runs on" not in caplog.text
        Predictor(model, providers=["CPUExecutionProvider"])
        assert f"'{model}' runs on CPUExecutionProvider." in caplog.text

    def test_an_unknown_provider_names_those_there_are(self, model):
        with pytest.raises(ConfigError, match=r"no provider 'GPU' here. It has .*CPUExecution"):
            Predictor(model, providers=["GPU"])

    @pytest.mark.parametrize("threads", [0, -1])
    def test_threads_are_at_least_one(self, model, threads):
        with pytest.raises(ConfigError, match=f"threads must be at least 1; got {threads}"):
            Predictor(model, threads=threads)


class TestCommand:
    def test_bad_images_have_a_line_each_and_fail_at_the_end(self, model, tmp_path):
        Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
        (tmp_path / "b.png").write_bytes(b"broken")
        command = ["predict", str(model), str(tmp_path), "--format", "csv", "-k", "1"]
        result = featx_cli(*command)
        assert result.exit_code == 1
        rows = list(csv.DictReader(io.StringIO(result.stdout)))
        assert [bool(row["error"]) for row in rows] == [False, True]
        assert "1 of 2 images could not be used" in result.stderr
        result = featx_cli(*command, "--max-pixels", "80")
        assert "9×9 pixels is more than the 80 allowed." in result.stdout

    def test_a_name_that_is_not_utf8_comes_out_with_an_escape(self, model, tmp_path):
        Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
        odd = os.fsencode(tmp_path) + b"/caf\xe9.png"
        os.rename(tmp_path / "a.png", odd)  # noqa: PTH104 a Path has no bytes
        result = featx_cli("predict", model, tmp_path, "--format", "csv")
        assert result.exit_code == 0
        assert rb"/caf\udce9.png," in result.stdout_bytes

    def test_the_limit_shown_is_the_librarys(self):
        for command in ("predict", "evaluate"):
            shown = featx_cli(command, "--help").stdout
            assert f"[default: {MAX_PIXELS}]" in " ".join(shown.split())

    def test_threads_and_providers(self, model, tmp_path):
        Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
        command = ["predict", str(model), str(tmp_path), "--format", "csv", "-k", "1"]
        plain = featx_cli(*command).stdout
        options = ["--threads", "1", "--provider", "CPUExecutionProvider"]
        assert featx_cli(*command, *options).stdout == plain
        result = featx_cli(*command, "--provider", "TPU")
        assert result.exit_code == 1
        assert "no provider 'TPU' here" in result.stderr
        assert featx_cli(*command, "--threads", "0").exit_code == 2

    @pytest.mark.parametrize("lines", ["jsonl", "csv"])
    def test_lines_come_as_images_are_answered(
        self, model, images, lines, monkeypatch, capfdbinary
    ):
        written = []

        def answers(*_: object, **__: object) -> Iterator[Prediction]:
            for i in range(3):
                yield Prediction(f"{i}.jpg", (("a", 1.0),))
                sys.stdout.flush()
                written.append(capfdbinary.readouterr().out.count(b".jpg"))

        monkeypatch.setattr(Predictor, "predict_each", answers)
        command = ["predict", str(model), str(images[0]), "--format", lines]
        main(command, standalone_mode=False)
        assert written == [1, 1, 1]


def require_close(answers: Sequence[Prediction], expected: Sequence[Prediction]) -> None:
    """Require the same images and classes, and probabilities that differ by rounding only."""
    for answer, other in zip(answers, expected, strict=True):
        assert (answer.image, answer.label) == (other.image, other.label)
        assert dict(answer.top) == pytest.approx(dict(other.top), abs=1e-5)


def test_threads_rest_soon_after_an_answer(model):
    predictor, worked = Predictor(model, threads=2), []
    for _ in range(3):
        predictor.predict([np.zeros((48, 64, 3), np.uint8)])
        start = time.process_time()
        time.sleep(0.3)
        worked.append(time.process_time() - start)
    assert min(worked) < 0.005


# --- forks --------------------------------------------------------------------------------------

_FORK = """
import os, signal, sys
import numpy as np
import featx

model, threads, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
images = [np.full((20, 30, 3), 3 * i, np.uint8) for i in range(count)]
predictor = featx.Predictor(model, threads=threads)
expected = predictor.predict(images)

def forked(work):
    pid = os.fork()
    if not pid:
        signal.alarm(30)  # a process that hangs is killed
        work()
        sys.exit(0)
    return os.waitpid(pid, 0)[1]

def answer():
    inherited = predictor._opened
    assert predictor.predict(images) == expected
    assert predictor._opened is not inherited  # the parent's has no threads here

print(forked(answer), forked(lambda: None), forked(lambda: (answer(), sys.exit(forked(answer)))))
assert predictor.predict(images) == expected
"""


@pytest.mark.parametrize(("threads", "count"), [(1, 1), (2, 1), (2, 40), (4, 2)])
def test_a_forked_process_answers_and_ends(model, threads, count):
    """As under a server that loads the model first and forks its workers then."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORK, str(model), str(threads), str(count)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout.split(), done.stderr) == (["0", "0", "0"], "")


_CONTINUED = """
import os, signal, sys
import numpy as np
import featx

images = [np.full((20, 30, 3), 3 * i, np.uint8) for i in range(40)]
predictor = featx.Predictor(sys.argv[1], threads=2, providers=eval(sys.argv[2]))
expected = predictor.predict(images)
begun, lazy = predictor.predict_each(images), predictor.predict_each(images)
one_by_one = predictor.predict_each(iter(images))
assert [next(begun), next(one_by_one)] == [expected[0]] * 2
if not os.fork():
    signal.alarm(30)  # a process that hangs is killed
    assert [*one_by_one] == expected[1:]
    assert [*lazy] == expected  # begun in this process
    try:
        next(begun)
    except featx.errors.ConfigError as err:
        print(err)
    sys.exit(0)
assert os.wait()[1] == 0
assert [*begun] == expected[1:]
"""


@pytest.mark.parametrize("providers", [None, ["CPUExecutionProvider"]])
def test_predictions_begun_before_a_fork_are_not_continued_in_the_child(model, providers):
    """Their threads are gone there: without the error the child would wait for ever."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _CONTINUED, str(model), repr(providers)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "predictions that a parent process began cannot be continued in a forked one; call "
        "predict_each again there.\n"
    )


def test_a_forked_process_does_not_answer_with_another_model(model, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    shutil.copy(model, path)
    predictor = Predictor(path, threads=1)
    own = os.getpid()
    monkeypatch.setattr(stage.os, "getpid", lambda: own + 1)
    assert predictor.predict([np.zeros((8, 8, 3), np.uint8)])[0].label
    monkeypatch.setattr(stage.os, "getpid", lambda: own + 2)
    path.write_bytes(seal(model.read_bytes()))
    with pytest.raises(ArtifactInvalid, match="was replaced since this predictor was made"):
        predictor.predict([np.zeros((8, 8, 3), np.uint8)])


def test_copies_and_what_is_unpickled_answer_alike_and_open_the_file_when_first_asked(
    model, tmp_path
):
    path = tmp_path / "m.onnx"
    shutil.copy(model, path)
    predictor, images = Predictor(path, threads=1), [np.full((8, 8, 3), 70, np.uint8)]
    saved = pickle.dumps(predictor)
    assert len(saved) < 2000
    expected = predictor.predict(images)
    for other in (pickle.loads(saved), copy.deepcopy(predictor), copy.copy(predictor)):
        assert other.predict(images) == expected
        assert other.classes == predictor.classes
    later = pickle.loads(saved)
    path.write_bytes(seal(model.read_bytes()))
    with pytest.raises(ArtifactInvalid, match="was replaced since this predictor was made"):
        later.predict(images)
    path.unlink()
    with pytest.raises(ArtifactMissing):
        pickle.loads(saved).predict(images)


# --- answers that cannot be ---------------------------------------------------------------------


@pytest.fixture(params=["nan", "one row", "no probability"])
def liar(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> Path:
    """A sealed model of the right contract whose graph gives what cannot be."""
    value, node = helper.make_tensor_value_info, helper.make_node
    weight = np.full((3, 10), np.nan if request.param == "nan" else 1, np.float32)
    last = {
        "nan": [
            node("Identity", ["sums"], ["logits"]),
            node("Softmax", ["sums"], ["probabilities"]),
        ],
        "one row": [
            node("ReduceMean", ["sums", "zero"], ["logits"], keepdims=1),
            node("Softmax", ["logits"], ["probabilities"]),
        ],
        "no probability": [
            node("Identity", ["sums"], ["logits"]),
            node("Identity", ["sums"], ["probabilities"]),
        ],
    }[request.param]
    graph = helper.make_graph(
        [
            node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
            node("ReduceMean", ["values", "axes"], ["means"], keepdims=0),
            node("MatMul", ["means", "weight"], ["sums"]),
            *last,
        ],
        "liar",
        [value("image", TensorProto.UINT8, ["batch", "height", "width", 3])],
        [value(name, TensorProto.FLOAT, ["batch", 10]) for name in ("logits", "probabilities")],
        initializer=[
            numpy_helper.from_array(np.array([1, 2]), "axes"),
            numpy_helper.from_array(np.array([0]), "zero"),
            numpy_helper.from_array(weight, "weight"),
        ],
    )
    forged = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    entries = {e.key: e.value for e in onnx.load(model).metadata_props if e.key != "sha256"}
    helper.set_model_props(forged, entries)
    path = tmp_path / "liar.onnx"
    path.write_bytes(seal(forged.SerializeToString()))
    return path


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv"])
def test_answers_that_cannot_be_are_one_line_of_error(liar, images, form):
    folder = str(images[0].parent)
    result = featx_cli("predict", liar, folder, "--format", form)
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert "that cannot be" in result.stderr
    assert result.stdout.count("\n") <= 1  # the names of columns


@pytest.mark.parametrize("liar", ["nan", "no probability"], indirect=True)
def test_answers_that_cannot_be_get_no_scores(liar):
    with pytest.raises(ArtifactInvalid, match="that cannot be"):
        evaluate(liar, "digits:")


# --- the head beside a model --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["head.safetensors", "other.safetensors"])
def test_a_model_of_another_head_than_that_beside_it_is_told(model, head, tmp_path, caplog, name):
    shutil.copy(model, tmp_path / "model.onnx")
    Predictor(tmp_path / "model.onnx", threads=1)
    shutil.copy(head, tmp_path / name)
    (tmp_path / "weights.safetensors").write_bytes(safetensors.numpy.save({"w": np.zeros(3)}))
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    Predictor(tmp_path / "model.onnx", threads=1)
    assert not caplog.records
    options = TrainOptions(strengths=(0.1,))
    train_head(head.with_name("f.h5"), tmp_path / name, options)
    caplog.clear()
    Predictor(tmp_path / "model.onnx", threads=1)
    assert f"model.onnx' was exported from another head than '{name}' beside it" in caplog.text
    shutil.copy(head, tmp_path / "its own.safetensors")
    caplog.clear()
    Predictor(tmp_path / "model.onnx", threads=1)
    assert not caplog.records


def test_the_command_warns_and_answers(model, head, images, tmp_path):
    shutil.copy(model, tmp_path / "model.onnx")
    options = TrainOptions(strengths=(0.1,))
    train_head(head.with_name("f.h5"), tmp_path / "head.safetensors", options)
    result = featx_cli("predict", tmp_path / "model.onnx", images[0])
    assert result.exit_code == 0
    assert result.stderr.startswith("Warning: ")
    assert "was exported from another head than 'head.safetensors' beside it" in result.stderr
    assert "beside it" not in result.stdout


def test_best_classes_are_sorted_and_ties_go_to_the_first():
    probabilities = np.array([[0.1, 0.4, 0.4, 0.1], [0.7, 0.1, 0.0, 0.2]])
    first, second = best_classes(probabilities, "abcd", top_k=3)
    assert [label for label, _ in first] == ["b", "c", "a"]
    assert second == (("a", 0.7), ("d", 0.2), ("b", 0.1))


def test_there_are_no_more_than_all_classes():
    (best,) = best_classes(np.array([[0.25, 0.75]]), "ab", top_k=9)
    assert best == (("b", 0.75), ("a", 0.25))


@pytest.mark.parametrize("top", [(), (("a", 0.5), ("b", 0.25))])
def test_label_and_probability_are_those_of_the_best(top):
    prediction = Prediction("x.jpg", top)
    assert (prediction.label, prediction.probability) == (top[0] if top else (None, None))


def test_a_tag_is_given_from_its_threshold_on():
    tops = [(("b", 0.5), ("a", 0.25)), (("b", 0.49), ("a", 0.2))]
    assert given_tags(tops, {"a": 0.25, "b": 0.5}) == [("a", "b"), ()]
