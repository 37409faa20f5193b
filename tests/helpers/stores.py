"""Stores on this machine: an S3 server, a web server, and one between that fails now and then."""

from __future__ import annotations

import gc
import hashlib
import http.client
import itertools
import re
import ssl
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

FAULTS = ("500", "503", "short", "reset", "silence")
SILENCE_S = 1.5


class _Answer(BaseHTTPRequestHandler):
    site: Site

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        site = self.site
        with site.lock:
            site.asked[self.command, self.path] += 1
            fault = next(site.faults)
        if fault in ("500", "503"):
            self.send_error(int(fault))
            return
        if fault == "reset":
            self.connection.close()
            return
        if fault == "silence":
            threading.Event().wait(SILENCE_S)
            return
        status, headers, content = site.respond(self)
        self.send_response(status)
        is_cut = site.cuts and self.command == "GET"
        length = {} if is_cut else {"Content-Length": str(len(content))}
        for name, value in {**length, **headers}.items():
            self.send_header(name, value)
        fault = "short" if is_cut else fault
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if fault == "short" else content)


class Site:
    """A web server that counts what it is asked.

    ``files`` are contents by path, ``headers`` those of the answers beside the length, ``moved``
    addresses by the path that leads there, ``refused`` methods, ``unknown`` the answer elsewhere.
    ``cuts``: bodies end in the middle, and answers to GET tell no length. Parts are sent where they
    are asked for, ``shift`` bytes further on, unless ``sends_parts`` is false.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.moved: dict[str, str] = {}
        self.headers: dict[str, str] | None = None  # None: an ETag
        self.refused: set[str] = set()
        self.unknown = 404
        self.cuts = False
        self.sends_parts, self.shift = True, 0
        self.asked: Counter[tuple[str, str]] = Counter()
        self.faults: Iterator[str] = itertools.repeat("")
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Answer", (_Answer,), {"site": self})
        )
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        scheme, port = "https" if tls else "http", self.server.server_port
        self.url = f"{scheme}://{'localhost' if tls else '127.0.0.1'}:{port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def respond(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        if request.command in self.refused:
            return 405, {}, b""
        if request.path in self.moved:
            return 302, {"Location": self.moved[request.path]}, b""
        content = self.files.get(request.path)
        if content is None:
            return self.unknown, {}, b""
        headers = self.headers
        if headers is None:
            headers = {"ETag": hashlib.md5(content).hexdigest()}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if asked and self.sends_parts:
            first, last = int(asked[1]) + self.shift, int(asked[2]) + self.shift
            told = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            return 206, headers | told, content[first : last + 1]
        return 200, headers, content

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Between(Site):
    """A server that hands requests to another, and fails where ``faults`` say so."""

    def __init__(self, url: str) -> None:
        self.host = urlsplit(url).netloc
        super().__init__()

    def respond(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        other = http.client.HTTPConnection(self.host, timeout=20)
        try:
            other.request(request.command, request.path, headers=dict(request.headers))
            answer = other.getresponse()
            return answer.status, _passed_on(answer.getheaders()), answer.read()
        finally:
            other.close()


def _passed_on(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    own = ("connection", "transfer-encoding", "server", "date")
    return {name: value for name, value in headers if name.lower() not in own}


def every(number: int, *, kinds: tuple[str, ...] = FAULTS) -> Iterator[str]:
    """Yield a fault at every so many requests, each kind in turn."""
    return (
        kinds[i // number % len(kinds)] if i % number == number // 2 else ""
        for i in itertools.count()
    )


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Return the file of a certificate for localhost, and what a server with it takes."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
    made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    path, private = folder / "localhost.pem", folder / "localhost.key"
    path.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    kind, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, none))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, private)
    return path, context


@pytest.fixture
def site():
    found = Site()
    yield found
    found.close()


@pytest.fixture(scope="session")
def s3_server():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """A client of the S3 server, and there an empty bucket ``photos``."""
    import boto3

    for name, value in (("ACCESS_KEY_ID", "me"), ("SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    client = boto3.client("s3", endpoint_url=s3_server)
    client.create_bucket(Bucket="photos")
    gc.disable()
    yield client
    for item in client.list_objects_v2(Bucket="photos").get("Contents", []):
        client.delete_object(Bucket="photos", Key=item["Key"])
    client.delete_bucket(Bucket="photos")
    client.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # sockets that s3fs leaves to the end
        gc.collect()
    gc.enable()


def put_folder(client, folder: Path, prefix: str = "") -> None:
    """Put the files below a folder into the bucket ``photos``."""
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        key = f"{prefix}{path.relative_to(folder).as_posix()}"
        client.put_object(Bucket="photos", Key=key, Body=path.read_bytes())
