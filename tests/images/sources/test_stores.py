"""Images in stores and on the web: the same as in a folder, whatever a network does."""

from __future__ import annotations

import gc
import hashlib
import itertools
import threading
import warnings
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import h5py
import numpy as np
import pytest
from PIL import Image

import featx
from featx.errors import ImageError, SourceError
from featx.extraction.plan import make_plan
from featx.images.reading import read_together
from featx.images.sources import open_source, remote
from featx.images.sources.remote import without_secrets

KEYS = ["a+b", "a%b", "a%2Fb", "a b", "a#b", "a?b", "é", "e\u0301", "x[1]", "x*", "y", "z"]


def png(number):
    file = BytesIO()
    Image.fromarray(np.full((8, 8, 3), number % 256, np.uint8)).save(file, "PNG")
    return file.getvalue() + str(number).encode()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(remote, "_TIMEOUT", 1.0)


@pytest.fixture(scope="module")
def s3_server():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # sockets that s3fs leaves to the end
        gc.collect()


@pytest.fixture
def bucket(s3_server, monkeypatch):
    import boto3

    for name, value in (("ACCESS_KEY_ID", "me"), ("SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    client = boto3.client("s3", endpoint_url=s3_server)
    client.create_bucket(Bucket="photos")
    yield client
    for item in client.list_objects_v2(Bucket="photos").get("Contents", []):
        client.delete_object(Bucket="photos", Key=item["Key"])
    client.delete_bucket(Bucket="photos")


def contents(source):
    found = read_together(source, range(len(source.samples)))
    return {source.samples[i].sample_id: content for i, _, content in found}


def test_a_prefix_is_as_a_folder_with_literal_keys_and_no_markers(bucket):
    names = {f"{split}/{key}.png": png(i) for i, key in enumerate(KEYS) for split in ("c", "d")}
    for name, content in names.items():
        bucket.put_object(Bucket="photos", Key=f"set/{name}", Body=content)
    for name in ("set/", "set/c/", "set2/c/other.png"):
        bucket.put_object(Bucket="photos", Key=name, Body=b"")
    source = open_source("s3://photos/set")
    assert source.uri == "s3://photos/set/"
    assert source.classes == ("c", "d")
    assert contents(source) == names
    assert open_source(source.uri).samples == source.samples


def test_rows_are_those_of_the_folder_and_a_second_run_reads_nothing(bucket, tmp_path, monkeypatch):
    for i, name in enumerate(f"{label}/{i}.png" for label in "ab" for i in range(4)):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i * 9))
        bucket.put_object(Bucket="photos", Key=f"set/{name}", Body=path.read_bytes())
    options = featx.ExtractOptions(backbone="tiny")
    featx.extract("s3://photos/set", tmp_path / "s3.h5", options)
    featx.extract(str(tmp_path / "set"), tmp_path / "local.h5", options)
    with h5py.File(tmp_path / "s3.h5") as one, h5py.File(tmp_path / "local.h5") as other:
        for name in ("features", "digests", "labels", "sample_ids"):
            assert np.array_equal(one[name][...], other[name][...])
    monkeypatch.setattr(remote.ObjectStore, "get", None)
    featx.extract(None, tmp_path / "s3.h5")
    assert featx.check(tmp_path / "s3.h5").source == "s3://photos/set/"


def test_an_object_replaced_after_listing_is_that_images_error(bucket):
    bucket.put_object(Bucket="photos", Key="c/1.png", Body=png(1))
    source = open_source("s3://photos/")
    before = source.stamp(0)
    bucket.put_object(Bucket="photos", Key="c/1.png", Body=png(2))
    with pytest.raises(ImageError, match="replaced"):
        source.read(0)
    assert open_source("s3://photos/").stamp(0) != before


def test_what_is_missing_is_said(bucket, monkeypatch):
    bucket.put_object(Bucket="photos", Key="birds/c/1.png", Body=png(1))
    with pytest.raises(SourceError, match=r"nothing below 's3://photos/bird/'.*birds"):
        open_source("s3://photos/bird/")
    with pytest.raises(SourceError, match="no bucket"):
        open_source("s3://nowhere/c/")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="No connection"):
        open_source("s3://photos/gone/")


def test_a_table_in_a_store_is_read_with_paths_beside_it(bucket):
    table = "path,label\nx/1.png,a\ns3://photos/y/2.png,b\nx/gone.png,b\n"
    bucket.put_object(Bucket="photos", Key="t/images.csv", Body=table.encode())
    bucket.put_object(Bucket="photos", Key="t/x/1.png", Body=png(1))
    bucket.put_object(Bucket="photos", Key="y/2.png", Body=png(2))
    source = open_source("s3://photos/t/images.csv")
    found = contents(source)
    assert found["x/1.png"] == png(1)
    assert found["s3://photos/y/2.png"] == png(2)
    assert isinstance(found["x/gone.png"], ImageError)


class _Site:
    """A web server that counts what it is asked, with a few ways to fail."""

    def __init__(self):
        self.files, self.asked, self.faults = {}, Counter(), itertools.repeat("")
        self.lock, site = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.answer()

            def do_GET(self):
                self.answer()

            def answer(self):
                with site.lock:
                    site.asked[self.command, self.path] += 1
                    fault = next(site.faults)
                content = site.files.get(self.path)
                if fault in ("500", "503") or content is None:
                    self.send_error(int(fault or 404))
                    return
                if fault == "reset":
                    self.connection.close()
                    return
                if fault == "silence":
                    threading.Event().wait(1.5)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", hashlib.md5(content).hexdigest())
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content[: len(content) // 2] if fault == "short" else content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def site():
    found = _Site()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_flaky_server_gives_every_image_in_the_end(site):
    names = [f"{i}.png" for i in range(150)]
    site.files = {f"/{name}": png(i) for i, name in enumerate(names)}
    table = "path,label\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(names))
    site.files["/images.csv"] = table.encode()
    kinds = ("500", "503", "short", "reset", "silence")
    site.faults = (kinds[i // 31 % 5] if i % 31 == 15 else "" for i in itertools.count())
    source = open_source(f"{site.url}/images.csv")
    assert contents(source) == {name: png(i) for i, name in enumerate(names)}


def test_signed_addresses_are_sent_as_they_are_and_never_shown(site):
    query = "?X-Amz-Credential=a%2Fb&X-Amz-Signature=s3cret"
    site.files[f"/1.png{query}"] = png(1)
    rows = f"{site.url}/1.png{query},a\n{site.url}/2.png{query},b\n"
    site.files["/images.csv"] = f"path,label\n{rows}".encode()
    source = open_source(f"{site.url}/images.csv")
    found = contents(source)
    assert found[f"{site.url}/1.png"] == png(1)
    assert "s3cret" not in str(found[f"{site.url}/2.png"]) + str(source.samples) + source.uri
    with pytest.raises(SourceError, match="user and password") as caught:
        open_source("https://me:s3cret@host/images.csv")
    assert "s3cret" not in str(caught.value)
    assert without_secrets("http://h/a?size=1") == "http://h/a?size=1"


def test_a_login_page_is_neither_table_nor_image(site):
    page = b"<!DOCTYPE html><html>Log in</html>"
    site.files = {"/images.csv": page, "/t.csv": b"path,label\n1.png,a\n", "/1.png": page}
    with pytest.raises(SourceError, match="web page"):
        open_source(f"{site.url}/images.csv")
    with pytest.raises(ImageError, match="web page"):
        open_source(f"{site.url}/t.csv").read(0)


def test_an_unchanged_image_is_looked_up_and_not_read_again(site):
    site.files = {"/t.csv": b"path,label\n1.png,a\n", "/1.png": png(1)}
    stamp = open_source(f"{site.url}/t.csv").stamp(0)
    assert open_source(f"{site.url}/t.csv").stamp(0) == stamp
    assert len(make_plan(open_source(f"{site.url}/t.csv"), (), None).todo()) == 1
    assert not site.asked["GET", "/1.png"]


def test_a_missing_package_is_a_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(SourceError, match="pip install gcsfs"):
        open_source("gs://bucket/c/")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(SourceError, match=r"featx\[cloud\]"):
        open_source("s3://bucket/c/")
