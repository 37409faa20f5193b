"""``featx serve`` as a process: signals, workers that end, reloads, and what it shows."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from commands import featx_cli
from onnx import numpy_helper
from serving import ADDRESS, Client, Reply, children, command

from featx.backbones.seal import seal
from featx.cli.serve import _show
from featx.serving import supervisor
from featx.serving.model import ServedModel
from featx.serving.options import ServeOptions
from featx.stages.predict import Predictor


class Load:
    """Clients that ask without end; every reply, and how requests without one failed."""

    def __init__(self, client: Client, image: bytes, clients: int = 4) -> None:
        self.replies, self.failures = list[Reply](), list[Exception]()
        self._client, self._image, self._stop = client, image, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                self.replies.append(self._client.predict(self._image, "?top_k=10"))
            except (OSError, http.client.HTTPException) as err:
                self.failures.append(err)
                time.sleep(0.02)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.wait(lambda: len(self.replies) > 4)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @staticmethod
    def wait(until: Callable[[], bool], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.02)


@pytest.fixture
def served(models: tuple[Path, Path], tmp_path: Path) -> Path:
    """A file that is served and replaced."""
    path = tmp_path / "model.onnx"
    path.write_bytes(models[0].read_bytes())
    return path


def replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def resealed(path: Path) -> bytes:
    """Return a model with another head, sealed again, that still has the proof of the old one."""
    model = onnx.load(path)
    weight = next(each for each in model.graph.initializer if "head_0_weight" in each.name)
    changed = 1.01 * numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    del model.metadata_props[-1]  # the seal
    return seal(model.SerializeToString())


def test_it_shows_model_proof_and_licence_and_ends_at_sigterm(model, pictures, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with command(model) as server:
        shown = "".join(server.shown)
        assert "64 images: same class in 100%" in shown
        assert "licence" in shown
        assert max(map(len, shown.splitlines())) <= 80
        assert server.predict(pictures[0]).status == 200
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        assert server.predict(b"no form", **kind).status == 400
        assert server.end() < 8
        assert server.process.returncode == 0
        errors = " ".join(server.errors.split())
        assert re.fullmatch(r"Loading '[^']+' \([\d.]+ MB\) in 1 worker …", errors)


def test_sigterm_under_load_answers_or_refuses_and_cuts_nothing_short(model, pictures):
    with command(model, "--workers", "2") as server:
        with Load(server, pictures[0]) as load:
            for pid in server.workers():  # as a service manager does
                os.kill(pid, signal.SIGTERM)
            assert server.end() < 12
        assert server.process.returncode == 0
        assert {reply.status for reply in load.replies} <= {200, 503}
        assert all(reply.json for reply in load.replies)
        assert not any(isinstance(err, http.client.IncompleteRead) for err in load.failures)


def test_with_one_core_it_starts_without_a_word_of_affinity(model, pictures):
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(own)})
    try:
        with command(model) as server:
            assert server.predict(pictures[0]).status == 200
            server.end()
            assert [line.split()[0] for line in server.errors.splitlines()] == ["Loading"]
    finally:
        os.sched_setaffinity(0, own)


@pytest.mark.slow
def test_a_worker_that_needs_long_to_start_is_waited_for(model, pictures):
    """As where a large model is loaded on a busy machine; here it is stopped for 21 seconds."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    arguments = [sys.executable, "-m", "featx", "serve", str(model), "--port", "0"]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stderr
            assert process.stderr.readline().startswith("Loading")
            Load.wait(lambda: bool(children(process.pid)))
            (worker,) = children(process.pid)
            os.kill(worker, signal.SIGSTOP)
            time.sleep(21)
            assert process.poll() is None
            os.kill(worker, signal.SIGCONT)
            port = next(int(m[1]) for line in process.stdout if (m := ADDRESS.search(line)))
            assert Client(port).predict(pictures[0]).status == 200
            assert children(process.pid) == [worker]
        finally:
            process.terminate()


def test_a_second_signal_ends_it_at_once(model):
    with command(model, "--grace", "30") as server:
        slow = socket.create_connection(("127.0.0.1", server.port))
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.end() < 2
        assert server.process.returncode == 0
        slow.close()


def test_a_worker_that_is_killed_is_replaced_and_counters_go_on(model, pictures):
    with command(model, "--workers", "2") as server:
        for _ in range(30):
            server.predict(pictures[0])
        assert server.count("predict", 200) == 30
        victim = server.workers()[0]
        os.kill(victim, signal.SIGKILL)
        Load.wait(lambda: server.metrics()["featx_worker_restarts_total"] == 1)
        Load.wait(lambda: server.metrics()["featx_workers"] == 2)
        assert server.count("predict", 200) == 30
        for _ in range(10):
            assert server.predict(pictures[0]).status == 200
        assert {server.count("predict", 200) for _ in range(10)} == {40}
        server.end()
        assert "SIGKILL" in server.errors


@pytest.mark.slow
def test_four_workers_show_the_same_thousand_requests_at_each_scrape(model, pictures):
    with command(model, "--workers", "4") as server:
        for _ in range(1000):
            assert server.predict(pictures[0]).status == 200
        assert {server.count("predict", 200) for _ in range(20)} == {1000}
        os.kill(server.workers()[2], signal.SIGKILL)
        assert min(server.count("predict", 200) for _ in range(20)) == 1000


def test_when_it_is_killed_its_workers_end_and_the_port_is_free(model, pictures):
    with command(model, "--workers", "2") as server:
        workers = server.workers()
        assert len(workers) == 2
        server.kill()
        Load.wait(lambda: not any(Path(f"/proc/{pid}/cwd").exists() for pid in workers))
        with command(model, port=server.port) as again:
            assert again.predict(pictures[0]).status == 200


def test_an_endless_upload_takes_no_more_memory_than_is_allowed(model, pictures):
    def memory(pid: int) -> int:
        text = Path(f"/proc/{pid}/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", text)[1])

    part = b"f4240\r\n" + bytes(1_000_000) + b"\r\n"
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    form = head.replace(b"Host: x", b"Content-Type: multipart/form-data; boundary=x")

    def upload(line: socket.socket) -> None:
        for _ in range(2000):
            line.sendall(part)

    with command(model, "--max-body", "5") as server:
        for _ in range(3):
            server.predict(bytes(4_900_000))
        before = memory(server.workers()[0])
        for start in (head, form):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
                line.sendall(start)
                with pytest.raises(OSError, match=r"reset|Broken"):
                    upload(line)
        assert memory(server.workers()[0]) - before < 10_000_000
        assert server.predict(pictures[0]).status == 200


def test_bad_models_are_not_taken_at_sighup_and_the_old_one_goes_on(
    served, models, pictures, tmp_path, exported_of
):
    good = models[0].read_bytes()
    bad = {
        "truncated": good[:-1000],
        "altered": good.replace(b"probabilities", b"probabilitiez"),
        "no model": b"x" * 1000,
        "proof": exported_of("no-proof"),
        "another graph": resealed(models[1]),
        "classes": exported_of("classes"),
        "outputs": exported_of("outputs"),
    }
    with command(served) as server:
        digest = server.predict(pictures[0]).headers["featx-model"]
        for number, content in enumerate(bad.values(), start=1):
            replace(served, content)
            server.process.send_signal(signal.SIGHUP)
            Load.wait(
                lambda number=number: server.metrics()["featx_failed_reloads_total"] == number
            )
            reply = server.predict(pictures[0])
            assert reply.status == 200
            assert reply.headers["featx-model"] == digest
        os.kill(server.workers()[0], signal.SIGKILL)  # what takes its place has the old one, too
        Load.wait(lambda: server.metrics()["featx_workers"] == 1)
        assert server.predict(pictures[0]).headers["featx-model"] == digest
        server.end()
        told = [line for line in server.errors.splitlines() if "goes on answering" in line]
        assert len(told) == len(bad)
        for word in ("proof", "another graph", "classes", "outputs", "altered"):
            assert any(word in line for line in told), word
        assert "Traceback" not in server.errors


def test_a_worker_that_cannot_take_what_another_took_is_replaced(served):
    class Some:
        def __init__(self, *, fails: bool) -> None:
            self.fails, self.closed = fails, False

        def ask(self, _: bytes) -> bytes:
            if self.fails:
                raise supervisor.WorkerEnded("There is too little memory.")
            return b""

        def ended(self) -> None:
            return None

        def close(self) -> None:
            self.closed = True

    with socket.create_server(("127.0.0.1", 0)) as listener:
        workers = supervisor._Workers(served, b"old", ServeOptions(workers=2), listener)
        for first_fails in (True, False):
            some = {1: Some(fails=first_fails), 2: Some(fails=not first_fails)}
            workers._workers = some
            workers.reload()
            assert workers._content == (b"old" if first_fails else served.read_bytes())
            assert some[2].closed != first_fails
        workers.close()


def test_a_good_model_is_taken_under_load_and_each_answer_is_of_one(served, models, pictures):
    expected = {}
    with command(served, "--workers", "2", "--threads", "1") as server:
        with Load(server, pictures[0]) as load:
            replace(served, models[1].read_bytes())
            server.process.send_signal(signal.SIGHUP)
            Load.wait(lambda: server.metrics()["featx_reloads_total"] == 1)
            before = len(load.replies)
            Load.wait(lambda: len(load.replies) > before + 20)
        replace(served, models[0].read_bytes())  # proven earlier
        server.process.send_signal(signal.SIGHUP)
        Load.wait(lambda: server.metrics()["featx_failed_reloads_total"] == 1)
        server.end()
    assert not load.failures
    assert {reply.status for reply in load.replies} == {200}
    for reply in load.replies:
        expected.setdefault(reply.headers["featx-model"], reply.json)
        assert reply.json == expected[reply.headers["featx-model"]]
    tops = [dict(Predictor(path).predict(pictures[:1], top_k=10)[0].top) for path in models]
    found = [
        {each["label"]: each["probability"] for each in own["top"]} for own in expected.values()
    ]
    assert len(found) == 2
    for own, wanted in zip(found, tops, strict=True):
        assert own == pytest.approx(wanted, abs=1e-5)
    assert found[0] != pytest.approx(found[1], abs=1e-3)


def test_what_predict_refuses_is_not_served(model, tmp_path):
    content = model.read_bytes()
    for name, bad in (("cut.onnx", content[:-500]), ("text.onnx", b"no model")):
        (tmp_path / name).write_bytes(bad)
        served, predicted = (
            featx_cli("serve", tmp_path / name, "--port", 0),
            featx_cli("predict", tmp_path / name, "x.jpg"),
        )
        assert served.exit_code == predicted.exit_code == 1
        assert served.stderr.splitlines()[-1] == predicted.stderr.splitlines()[-1]
    missing = featx_cli("serve", tmp_path / "none.onnx")
    assert missing.exit_code == 1
    assert "none.onnx" in missing.stderr


@pytest.mark.parametrize(
    ("module", "package"), [("uvicorn", "uvicorn"), ("python_multipart", "python-multipart")]
)
def test_a_missing_package_is_named_with_what_installs_it(model, monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    found = featx_cli("serve", model)
    assert found.exit_code == 1
    assert f"{package}, which is not installed: pip install 'featx[serve]'" in found.stderr


def test_options_that_cannot_be_used_are_named(model, tmp_path):
    (tmp_path / "short").write_text("abc\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, told in (
            (["--port", port], "--port"),
            (["--port", 70_000], "--port"),
            (["--workers", 0], "--workers"),
            (["--queue", 0], "--queue"),
            (["--max-pixels", 10**9], "--max-pixels"),
            (["--name", "a/b"], "--name"),
            (["--token-file", tmp_path / "none"], "none"),
            (["--token-file", tmp_path / "short"], "16"),
        ):
            found = featx_cli("serve", model, *arguments)
            assert found.exit_code == 1, found.output
            assert told in found.stderr


def test_ctrl_c_ends_it_and_leaves_no_process(model):
    with command(model) as server:
        before = server.workers()
        server.end(signal.SIGINT)
        assert server.process.returncode == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in before)


def test_why_there_is_no_page_is_told_in_flags(exported_of, tmp_path, capsys):
    content = exported_of("crop probabilities")
    about = ServedModel(content, path=tmp_path / "m.onnx", max_pixels=10**6).describe()
    _show(tmp_path / "m.onnx", "m", "http://127.0.0.1:1", about)
    shown = " ".join(capsys.readouterr().out.split())
    assert "Export it with --input image, the default." in shown
