"""Extraction by a Ray cluster on this machine: the same bytes, and what is refused before."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stores import put_folder

from featx.errors import ClusterError, ConfigError
from featx.extraction import nodes
from featx.extraction.nodes import Node, find_address, require_alike
from featx.extraction.options import ExtractOptions
from featx.extraction.tokens import address_for_init
from featx.stages.extract import extract
from featx.stages.merge import merge_parts

pytestmark = pytest.mark.filterwarnings(  # files that Ray's helper leaves to the end
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

TINY: dict[str, Any] = {"backbone": "tiny", "image_size": 32, "batch_size": 4, "on_error": "skip"}


@pytest.fixture(scope="module")
def short_folder():
    """Return a folder for Ray, in which names of sockets may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="fx", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield name


@pytest.fixture(scope="module")
def cluster(short_folder):
    """Return the address of a cluster: a head without CPUs, and two nodes with two each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", short_folder)
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 2**27}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            head["ray_client_server_port"] = free.getsockname()[1]
        patch.setenv("FEATX_TEST_CLIENT", f"ray://127.0.0.1:{head['ray_client_server_port']}")
        found = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                found.add_node(num_cpus=2, object_store_memory=2**27)
            yield str(found.address)
        finally:
            found.shutdown()


@pytest.fixture
def mixed(photos) -> Path:
    """Return images with copies across batches and images that cannot be used."""
    source: Path = photos({"ants": 21, "bees": 20})
    shutil.copy(source / "ants/001.jpg", source / "bees/copy.jpg")
    shutil.copy(source / "bees/016.jpg", source / "ants/000-copy.jpg")
    (source / "ants/004.jpg").write_bytes(b"no image")
    shutil.copy(source / "ants/004.jpg", source / "bees/no-image.jpg")
    return source


def test_the_file_is_that_of_one_machine(cluster, mixed, tmp_path):
    plain, own = tmp_path / "plain.h5", tmp_path / "own.h5"
    alone = extract(mixed, plain, ExtractOptions(**TINY))
    told: list[int] = []
    report = extract(
        mixed,
        own,
        ExtractOptions(**TINY, ray=cluster, ray_workers=3),
        progress=lambda done, _: told.append(done),
    )
    assert own.read_bytes() == plain.read_bytes()
    assert report.skipped == alone.skipped
    assert report.num_duplicates == alone.num_duplicates == 2
    assert told[-1] == 44
    assert not list(tmp_path.glob("*.partial"))


def test_a_source_that_nodes_do_not_see_is_named_before_anything_starts(
    cluster, photos, tmp_path, monkeypatch
):
    from featx.extraction import cluster as own

    source = photos({"ants": 9})
    plain = own.some_of

    def elsewhere(*args: Any) -> Any:
        part, digests = plain(*args)
        return replace(part, folder="/no/such/folder"), digests

    monkeypatch.setattr(own, "some_of", elsewhere)
    options = ExtractOptions(**TINY, ray=cluster)
    with pytest.raises(ClusterError, match=r"cannot be used: it cannot read 'ants/000\.jpg' of "):
        extract(source, tmp_path / "f.h5", options)
    assert not list(tmp_path.glob("f.h5*"))


def test_a_worker_that_has_room_nowhere_is_refused_soon(cluster, photos, tmp_path, monkeypatch):
    from featx.extraction import actors

    monkeypatch.setattr(actors, "_START_SECONDS", 1.0)
    options = ExtractOptions(**TINY, ray=cluster, workers=3, ray_workers=2)
    with pytest.raises(ClusterError, match=r"takes 3 CPUs, 1 worker .* has 2 CPUs"):
        extract(photos({"ants": 9}), tmp_path / "f.h5", options)


def test_nothing_of_the_current_folder_is_sent(cluster, photos, tmp_path, monkeypatch):
    import ray

    calls: list[dict[str, Any]] = []
    plain = ray.init
    monkeypatch.setattr(ray, "init", lambda **how: (calls.append(how), plain(**how))[1])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.py").write_text("1/0")
    with nodes.connected(cluster) as found:
        sent = found.get_runtime_context().runtime_env
    assert not dict(sent)
    assert "runtime_env" not in calls[0]
    assert calls[0]["address"] == cluster  # not "auto", which would send a token unasked
    assert os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"


@pytest.mark.slow
@pytest.mark.real_data
def test_photos_and_resnet18_give_the_file_of_one_machine(cluster, data, tmp_path):
    source = data / "hymenoptera_data"
    options = {"backbone": "resnet18", "weights": "none"}
    extract(source, tmp_path / "plain.h5", ExtractOptions(**options))
    extract(source, tmp_path / "own.h5", ExtractOptions(**options, ray=cluster))
    assert (tmp_path / "own.h5").read_bytes() == (tmp_path / "plain.h5").read_bytes()


@pytest.mark.slow
def test_a_command_prints_one_document(cluster, photos, tmp_path):
    source = photos({"ants": 21, "bees": 20})
    command = [sys.executable, "-m", "featx", "extract", str(source), "-b", "tiny", "--json"]
    addresses = {"own": os.environ["FEATX_TEST_CLIENT"], "node": cluster}
    for name, more in (("plain", []), *((n, ["--ray", a]) for n, a in addresses.items())):
        output = tmp_path / f"{name}.h5"
        done = subprocess.run([*command, "-o", output, *more], capture_output=True, check=True)
        found = json.loads(done.stdout)
        assert found["path"] == str(output)
        assert (found["num_images"], found["num_extracted"]) == (41, 41)
    for name in addresses:
        assert (tmp_path / f"{name}.h5").read_bytes() == (tmp_path / "plain.h5").read_bytes()


@pytest.mark.slow
def test_parts_of_a_cluster_are_merged_to_the_file_of_one_machine(cluster, photos, tmp_path):
    source = photos({"ants": 70, "bees": 70})
    options = {"backbone": "tiny"}
    extract(source, tmp_path / "plain.h5", ExtractOptions(**options))
    for part in ("1/2", "2/2"):
        own = ExtractOptions(**options, part=part, ray=cluster, ray_workers=2)
        extract(source, tmp_path / "own.parts", own)
    merge_parts(tmp_path / "own.parts", tmp_path / "own.h5")
    assert (tmp_path / "own.h5").read_bytes() == (tmp_path / "plain.h5").read_bytes()


@pytest.mark.slow
def test_a_store_is_read_by_the_nodes(bucket, photos, tmp_path, short_folder, monkeypatch):
    from ray.cluster_utils import Cluster

    put_folder(bucket, photos({"ants": 21, "bees": 20}), "set/")
    head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 2**27}
    monkeypatch.setenv("RAY_TMPDIR", short_folder)
    own = Cluster(initialize_head=True, head_node_args=head)  # begun with the store's credentials
    try:
        for name, more in (("plain", {}), ("own", {"ray": str(own.address)})):
            options = ExtractOptions(**TINY, **more)
            extract("s3://photos/set/", tmp_path / f"{name}.h5", options)
    finally:
        own.shutdown()
    assert (tmp_path / "own.h5").read_bytes() == (tmp_path / "plain.h5").read_bytes()


@pytest.mark.slow
def test_views_and_cuts_are_those_of_one_machine(cluster, mixed, tmp_path):
    for number, more in enumerate(({"views": 2}, {"cut": "input"})):
        options = TINY | more
        extract(mixed, tmp_path / f"plain{number}.h5", ExtractOptions(**options))
        extract(mixed, tmp_path / f"own{number}.h5", ExtractOptions(**options, ray=cluster))
        plain, own = (tmp_path / f"{name}{number}.h5" for name in ("plain", "own"))
        assert own.read_bytes() == plain.read_bytes()


def test_what_a_client_needs_is_named_with_its_command(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setitem(sys.modules, "grpc", None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        free.listen()
        port = free.getsockname()[1]
        with pytest.raises(ClusterError, match=r"is reached by .*grpc.*pip install 'featx"):
            find_address(f"ray://127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["nowhere", "a/b:12", "host:port", "ray://"])
def test_what_is_no_address_is_refused(address, monkeypatch):
    monkeypatch.setattr(nodes, "CONNECT_SECONDS", 0.5)
    with pytest.raises((ConfigError, ClusterError)):
        find_address(address)


def test_a_cluster_that_does_not_answer_is_given_up_soon(monkeypatch):
    monkeypatch.setattr(nodes, "CONNECT_SECONDS", 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        start = time.monotonic()
        with pytest.raises(ClusterError, match=r"No Ray cluster at '127\.0\.0\.1:\d+' \(.*refused"):
            find_address(f"127.0.0.1:{port}")
        free.listen()  # takes connections, and never says a word
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            with pytest.raises(ClusterError, match="is not a Ray cluster"):
                find_address(address)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ((), "finds no Ray cluster on this machine"),
        (("10.0.0.1:6379", "10.0.0.2:6379"), "2 Ray clusters run .* Say which, such as"),
    ],
)
def test_auto_needs_one_cluster_and_starts_none(found, said, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: set(found))
    with pytest.raises(ClusterError, match=said):
        find_address("auto")


def test_without_ray_its_install_command_is_named(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"ray=… needs ray.*pip install 'featx"):
        extract(photos({"ants": 2}), tmp_path / "f.h5", ExtractOptions(**TINY, ray="auto"))
    assert not list(tmp_path.glob("f.h5*"))


@pytest.fixture
def described(monkeypatch):
    """Return a function that sets what each of some nodes is, and checks them."""
    own = nodes._description("torch")()

    def check(*changes: dict[str, Any], allow_mixed: bool = False, **how: Any) -> list[str]:
        found = [
            {
                "versions": own["versions"] | change.get("versions", {}),
                "kind": change.get("kind", own["kind"]),
            }
            for change in changes
        ]
        named = [
            Node(str(i), f"10.0.0.{i}", 2, 0, change.get("gpu", ""))
            for i, change in enumerate(changes)
        ]
        monkeypatch.setattr(nodes, "_on_each", lambda *_: list(zip(named, found, strict=True)))
        how = {"engine": "onnxruntime", "with_gpus": False, "allow_mixed": allow_mixed} | how
        return list(require_alike(SimpleNamespace(), named, **how).kinds)

    return check


@pytest.mark.parametrize("name", ["featx", "python", "numpy", "pillow", "onnxruntime"])
def test_a_node_with_another_version_is_named(described, name):
    described({}, {})
    with pytest.raises(ClusterError, match=rf"10\.0\.0\.1: it has {name} 0\.1, expected \d"):
        described({}, {"versions": {name: "0.1"}})


def test_torch_has_to_be_the_same_where_it_runs_the_backbone(described):
    other = {"versions": {"torch": "0.1"}}
    described({}, other)
    with pytest.raises(ClusterError, match=r"10\.0\.0\.1: it has torch 0\.1, expected \d"):
        described({}, other, engine="torch")


def test_gpus_of_several_kinds_are_refused_where_they_compute(described):
    changes = {"gpu": "A100"}, {"gpu": "T4"}
    described(*changes)
    with pytest.raises(ClusterError, match=r"2 kinds \(10\.0\.0\.0: A100 .*10\.0\.0\.1: T4 beside"):
        described(*changes, with_gpus=True)


def test_processors_of_several_kinds_are_refused_unless_allowed(described, caplog):
    changes = {"kind": "x86_64 avx2"}, {"kind": "x86_64 avx2 avx512f"}
    with pytest.raises(ClusterError, match=r"of 2 kinds.*allow_mixed=True"):
        described(*changes)
    assert len(described(*changes, allow_mixed=True)) == 2
    assert "last bits" in caplog.text
    described({}, {"versions": {"numpy": "1.0"}}, allow_mixed=True)
    with pytest.raises(ClusterError, match="featx"):
        described({}, {"versions": {"featx": "0.1"}}, allow_mixed=True)


@pytest.mark.parametrize("value", ["0", "4:2", "0:3", "many", "2:", "1:2:3", "-1"])
def test_numbers_of_workers_that_mean_nothing_are_refused(value):
    with pytest.raises(ConfigError, match="ray_workers"):
        ExtractOptions(ray="auto", ray_workers=value)


@pytest.mark.parametrize("option", [{"ray_workers": 2}, {"allow_mixed": True}])
def test_options_of_a_cluster_need_one(option):
    with pytest.raises(ConfigError, match="needs ray=…"):
        ExtractOptions(**option)


@pytest.mark.slow
def test_workers_take_the_cpus_of_nodes_and_none_the_head(cluster, photos, tmp_path, monkeypatch):
    import ray

    from featx.extraction import actors

    found: dict[str, Any] = {}
    close = actors.ActorPool.close

    def look(self: Any) -> None:
        until = time.monotonic() + 60
        while len(self.joined()) < 2 and time.monotonic() < until:
            self.wait(0.1)
        self.wait(3)  # time for a third, for which there is no room
        found["nodes"] = sorted(worker.node for worker in self.joined())
        found["free"] = ray.available_resources().get("CPU", 0)
        found["computing"] = sorted(n.name for n in nodes.alive_nodes(ray) if n.cpus)
        close(self)

    monkeypatch.setattr(actors.ActorPool, "close", look)
    options = ExtractOptions(**TINY, ray=cluster, workers=2, ray_workers=3)
    extract(photos({"ants": 9}), tmp_path / "f.h5", options)
    assert found["nodes"] == found["computing"]
    assert found["free"] == 0


@pytest.mark.slow
def test_a_long_temporary_folder_and_a_gpu_of_the_driver_reach_no_worker(
    cluster, photos, tmp_path, monkeypatch
):
    source, long = photos({"ants": 9}), tmp_path / ("t" * 90)
    long.mkdir()
    command = [sys.executable, "-m", "featx", "extract", source, "-b", "tiny", "--ray", cluster]
    own = {name: value for name, value in os.environ.items() if name != "RAY_TMPDIR"}
    env = own | {"TMPDIR": str(long), "CUDA_VISIBLE_DEVICES": "7"}
    command += ["-o", tmp_path / "f.h5"]
    subprocess.run([*map(str, command)], env=env, capture_output=True, check=True)
    assert not list(long.iterdir())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with nodes.connected(cluster) as ray:
        seen = nodes._on_each(
            ray, nodes.alive_nodes(ray), lambda: os.environ.get("CUDA_VISIBLE_DEVICES", "")
        )
    assert len(seen) == 3
    assert "7" not in {value for _, value in seen}


@pytest.mark.parametrize("mode", ["", "token"])
def test_a_cluster_that_asks_for_a_token_says_so_at_once(mode, monkeypatch):
    grpc = pytest.importorskip("grpc")

    class Refusing(grpc.GenericRpcHandler):
        def service(self, _: Any) -> Any:
            def refuse(_request: bytes, context: Any) -> bytes:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
                return b""

            return grpc.unary_unary_rpc_method_handler(refuse)

    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Refusing()])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        if mode:
            assert find_address(address) == address  # Ray sends it
            return
        with pytest.raises(ClusterError, match=r"asks for its token\. Set RAY_AUTH_MODE=token"):
            find_address(address)
        monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: {address})
        assert find_address("auto") == address
        assert address in nodes._asking
        assert address_for_init(address) == "auto"  # so that Ray sends it
    finally:
        server.stop(None)
