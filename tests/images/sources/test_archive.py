"""Archives: the same samples as the folder they were packed from, and what is refused."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from archives import add_to_tar, archive_of, mutated, pack

from featx.errors import ImageError, SourceError
from featx.images.sources import ImageSource, open_source
from featx.images.sources.members import ArchiveSource

both = pytest.mark.parametrize("ending", [".zip", ".tar"])
DIGITS = {f"{name}/{i}.jpg": f"{name}{i}".encode() * 50 for name in ("a", "b") for i in range(3)}


def touch(root: Path, *names: str) -> Path:
    """Make files that hold their own names; a name that ends in ``/`` is a folder."""
    for name in names:
        folder = root / name if name.endswith("/") else (root / name).parent
        folder.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            (root / name).write_bytes(os.fsencode(name) * 20)
    return root


def contents(source: ImageSource) -> dict[str, bytes]:
    return {s.sample_id: source.read(i) for i, s in enumerate(source.samples)}


def problems(source: ImageSource) -> dict[str, str]:
    """Return why some images cannot be read."""
    found = {}
    for index, sample in enumerate(source.samples):
        try:
            source.read(index)
        except ImageError as err:
            found[sample.sample_id] = err.reason
    return found


class TestLayouts:
    @both
    @pytest.mark.parametrize(
        "names",
        [
            ("bees/1.jpg", "ants/2.png", "ants/deep/er/3.JPG"),
            ("train/ants/1.jpg", "val/ants/2.jpg", "val/bees/3.jpg", "test/cats/4.jpg"),
            ("ants/train/1.jpg", "ants/val/2.jpg", "bees/train/1.jpg", "bees/val/2.jpg"),
            ("1.jpg", "2.png"),
            ("data/train/cat/1.jpg", "data/val/cat/2.jpg"),
            ("ants/1.jpg", "ants/.ipynb_checkpoints/1.jpg", "empty/", ".hidden/2.jpg"),
            ("ants/1.jpg", "bees/2.jpg", "Thumbs.db", ".DS_Store", "__pycache__/3.jpg", "n.txt"),
            ("ants/1.jpg", "artifacts/f.h5", "x.jpg/2.jpg", "ants/3.heic", "ants/ö ü.jpg"),
        ],
    )
    def test_samples_are_those_of_the_folder(self, tmp_path, ending, names):
        folder = touch(tmp_path / "photos", *names)
        expected = open_source(str(folder))
        source = open_source(str(pack(folder, tmp_path / f"photos{ending}")))
        assert isinstance(source, ArchiveSource)
        assert source.classes == expected.classes
        assert source.samples == expected.samples
        assert source.ignored == expected.ignored
        assert contents(source) == contents(expected)

    @both
    def test_what_is_refused_of_a_folder_is_refused_of_an_archive(self, tmp_path, ending):
        folder = touch(tmp_path / "photos", "train/ants/1.jpg", "test/ants/2.jpg", "cats/3.jpg")
        path = pack(folder, tmp_path / f"photos{ending}")
        with pytest.raises(SourceError, match=f"'{path}' mixes split folders"):
            open_source(str(path))
        for names in ((), ("notes.txt",)):
            with pytest.raises(SourceError, match="holds no images"):
                open_source(str(archive_of(tmp_path / f"e{ending}", dict.fromkeys(names, b""))))

    @both
    def test_leftovers_of_macos_are_skipped_and_counted_around_one_folder(self, tmp_path, ending):
        names = ["data/train/cat/1.jpg", "data/train/dog/2.jpg", "data/val/cat/3.jpg"]
        junk = ["__MACOSX/data/train/cat/._1.jpg", "__MACOSX/._data", "data/._train"]
        junk += ["data/train/cat/.DS_Store", "data/train/cat/._1.jpg", "data/Thumbs.db"]
        path = archive_of(tmp_path / f"p{ending}", dict.fromkeys((*junk, *names), b"x"))
        source = open_source(str(path))
        assert [s.sample_id for s in source.samples] == names
        assert source.classes == ("cat", "dog")
        assert [s.split for s in source.samples] == ["train", "train", "val"]
        assert source.ignored == {"__MACOSX/": 1, "hidden": 3, ".db": 1}

    def test_the_uri_finds_the_archive_again(self, tmp_path, monkeypatch):
        archive_of(tmp_path / "p.ZIP", DIGITS)
        monkeypatch.chdir(tmp_path)
        source = open_source("p.ZIP")
        monkeypatch.chdir("/")
        assert open_source(source.uri).samples == source.samples


class TestNames:
    def test_dots_and_empty_parts_are_left_out(self, tmp_path):
        path = archive_of(tmp_path / "p.tar", {"./a//1.jpg": b"1", "./b/./2.jpg": b"2"})
        assert [s.sample_id for s in open_source(str(path)).samples] == ["a/1.jpg", "b/2.jpg"]

    @both
    @pytest.mark.parametrize(
        "name",
        ["../1.jpg", "a/../../1.jpg", "/etc/1.jpg", "C:\\x\\1.jpg", "C:/1.jpg", "a\\..\\..\\1.jpg"],
    )
    def test_what_leads_out_of_the_archive_is_refused(self, tmp_path, ending, name):
        path = archive_of(tmp_path / f"p{ending}", {"a/0.jpg": b"0", name: b"1"})
        with pytest.raises(SourceError, match="leads out of the archive"):
            open_source(str(path))

    @both
    @pytest.mark.parametrize("name", ["a/" * 100 + "1.jpg", "x" * 5000 + ".jpg"])
    def test_what_no_file_system_has_is_refused(self, tmp_path, ending, name):
        path = archive_of(tmp_path / f"p{ending}", {name: b"1"})
        with pytest.raises(SourceError, match="a path of more than 4096 characters"):
            open_source(str(path))

    @both
    def test_two_files_of_one_name_are_refused(self, tmp_path, ending):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = archive_of(tmp_path / f"p{ending}", [("a/1.jpg", b"1"), ("./a/1.jpg", b"2")])
        with pytest.raises(SourceError, match=r"several files called 'a/1\.jpg'"):
            open_source(str(path))

    @pytest.mark.parametrize(
        "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
    )
    def test_tars_of_each_format_give_the_bytes_that_the_library_gives(self, tmp_path, tar_format):
        names = [f"{'d' * 90}/{'e' * 40}/{i}.jpg" for i in range(3)] + ["a/1.jpg"]
        if tar_format != tarfile.USTAR_FORMAT:
            names += [f"{'f' * 250}/{'g' * 300}.jpg", "größe/ü.jpg"]
        with tarfile.open(tmp_path / "p.tar", "w", format=tar_format) as tar:
            for number, name in enumerate(names):
                mtime = number / 2  # in a header of its own in every other member
                add_to_tar(tar, name, bytes([number]) * (number * 700), mtime=mtime)
        with tarfile.open(tmp_path / "p.tar") as tar:
            expected = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
        assert contents(open_source(str(tmp_path / "p.tar"))) == expected

    @pytest.mark.parametrize("key", ["path", "size", "linkpath"])
    def test_a_path_or_size_for_all_members_is_refused(self, tmp_path, key):
        with tarfile.open(tmp_path / "p.tar", "w", pax_headers={key: "7"}) as tar:
            add_to_tar(tar, "a/1.jpg", b"1")
        with pytest.raises(SourceError, match="not a whole tar archive: a path or size for all"):
            open_source(str(tmp_path / "p.tar"))

    def test_names_with_a_nul_are_refused(self, tmp_path):
        with tarfile.open(tmp_path / "p.tar", "w") as tar:
            add_to_tar(tar, "a.jpg", b"1", pax_headers={"path": "a\0.jpg"})
        with pytest.raises(SourceError, match="or with a NUL in it"):
            open_source(str(tmp_path / "p.tar"))

    @pytest.mark.parametrize(
        ("stored", "encoding", "expected"),
        [("größe", "utf-8", "größe"), ("größe", "cp437", "größe"), ("кот", "cp866", None)],
    )
    def test_zip_names_without_a_mark_are_read_as_utf8_or_cp437(
        self, tmp_path, caplog, stored, encoding, expected
    ):
        raw = f"{stored}/1.jpg".encode(encoding)
        archive_of(tmp_path / "p.zip", {"x" * len(raw): b"1"})
        content = (tmp_path / "p.zip").read_bytes().replace(b"x" * len(raw), raw)
        (tmp_path / "p.zip").write_bytes(content)
        source = open_source(str(tmp_path / "p.zip"))
        assert source.read(0) == b"1"
        assert source.classes == (expected or stored.encode(encoding).decode("cp437"),)
        assert ("read as cp437" in caplog.text) == (encoding != "utf-8")
        said = open_source(f"{tmp_path}/p.zip?encoding={encoding}")
        assert said.classes == (stored,)
        assert open_source(said.uri).samples == said.samples
        if encoding != "utf-8":
            with pytest.raises(SourceError, match="cannot be read in the encoding 'klingon'"):
                open_source(f"{tmp_path}/p.zip?encoding=klingon")

    def test_a_name_that_is_wrongly_marked_as_utf8_is_refused(self, tmp_path):
        archive_of(tmp_path / "p.zip", {"öö.jpg": b"1"})
        content = (tmp_path / "p.zip").read_bytes().replace("ö".encode(), b"\xff\xfe")
        (tmp_path / "p.zip").write_bytes(content)
        with pytest.raises(SourceError, match="said to be UTF-8 but is not"):
            open_source(str(tmp_path / "p.zip"))

    def test_backslashes_of_windows_separate_folders(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "p.zip", "w") as file:
            for name in ("train\\cat\\1.jpg", "val\\cat\\2.jpg"):
                info = zipfile.ZipInfo(name)
                info.create_system = 0
                file.writestr(info, b"x")
        source = open_source(str(tmp_path / "p.zip"))
        assert [(s.sample_id, s.split) for s in source.samples] == [
            ("train/cat/1.jpg", "train"),
            ("val/cat/2.jpg", "val"),
        ]


TARGETS = {"ok": "../b/2.jpg", "out": "../../etc/passwd", "root": "/etc/passwd", "far": "ok.jpg"}


class TestLinks:
    @both
    def test_links_lead_to_files_of_the_archive_alone(self, tmp_path, ending):
        path = archive_of(tmp_path / f"p{ending}", {"b/2.jpg": b"two"})
        if ending == ".tar":
            with tarfile.open(path, "a") as tar:
                for name, target in TARGETS.items():
                    add_to_tar(tar, f"a/{name}.jpg", type=tarfile.SYMTYPE, linkname=target)
                add_to_tar(tar, "a/hard.jpg", type=tarfile.LNKTYPE, linkname="./b/2.jpg")
                add_to_tar(tar, "a/pipe.jpg", type=tarfile.FIFOTYPE)
        else:
            with zipfile.ZipFile(path, "a") as file:
                for name, target in TARGETS.items():
                    info = zipfile.ZipInfo(f"a/{name}.jpg")
                    info.external_attr = (stat.S_IFLNK | 0o777) << 16
                    file.writestr(info, target)
        source = open_source(str(path))
        found = problems(source)
        assert found.pop("a/pipe.jpg", "not a regular file.") == "not a regular file."
        assert sorted(found) == ["a/far.jpg", "a/out.jpg", "a/root.jpg"]
        assert all("no file of the archive" in reason for reason in found.values())
        for index, sample in enumerate(source.samples):
            if sample.sample_id not in found and sample.sample_id != "a/pipe.jpg":
                assert source.read(index) == b"two"


def patched(path: Path, name: str, **values: int) -> None:
    """Change fields of a zip's member in the directory at the end."""
    places = {"flag": (8, 2), "method": (10, 2), "crc": (16, 4), "packed": (20, 4), "size": (24, 4)}
    content = bytearray(path.read_bytes())
    start = content.rindex(name.encode()) - 46
    for field, value in values.items():
        at, width = places[field]
        content[start + at : start + at + width] = value.to_bytes(width, "little")
    path.write_bytes(content)


class TestDamage:
    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            ({"flag": 1}, "it is encrypted"),
            ({"method": 99}, "it is encrypted"),
            ({"method": 9}, "compressed by Deflate64"),
            ({"method": 14}, "compressed by LZMA"),
            ({"method": 77}, "compressed by method 77"),
            ({"crc": 1}, "its checksum is wrong"),
            ({"size": 99}, "another size than the 99 bytes"),
            ({"size": 2000}, "another size than the 2000 bytes"),
            ({"packed": 7}, "compressed bytes end too early"),
            ({"size": 2**31}, "more than the 1073741824 allowed"),
            ({"size": 2**29}, "as no image does: a bomb"),
        ],
    )
    def test_one_image_of_a_zip_is_refused_and_the_rest_is_read(self, tmp_path, values, reason):
        with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for name in ("a/1.jpg", "a/2.jpg", "a/3.jpg"):
                file.writestr(name, name * 200)
        patched(tmp_path / "p.zip", "a/2.jpg", **values)
        source = open_source(str(tmp_path / "p.zip"))
        assert source.read(0) == b"a/1.jpg" * 200
        found = problems(source)
        assert list(found) == ["a/2.jpg"]
        assert reason in found["a/2.jpg"]

    def test_an_image_that_unpacks_to_more_than_it_says_stops_there(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a.jpg", bytes(10**7))
        patched(tmp_path / "p.zip", "a.jpg", size=1000)
        assert (
            "another size than the 1000" in problems(open_source(str(tmp_path / "p.zip")))["a.jpg"]
        )

    def test_a_zip_whose_images_unpack_to_many_times_its_size_is_a_bomb(self, tmp_path):
        archive_of(tmp_path / "p.zip", {f"{i:02}.jpg": b"x" for i in range(20)})
        for i in range(20):
            patched(tmp_path / "p.zip", f"{i:02}.jpg", size=2**26)
        with pytest.raises(SourceError, match=r"unpack to 1,342,177,280: it is a bomb"):
            open_source(str(tmp_path / "p.zip"))

    def test_members_that_share_bytes_are_a_bomb(self, tmp_path):
        archive_of(tmp_path / "p.zip", {"1.jpg": b"x" * 100, "2.jpg": b"y" * 100})
        patched(tmp_path / "p.zip", "1.jpg", packed=150, size=150)
        with pytest.raises(SourceError, match="share bytes"):
            open_source(str(tmp_path / "p.zip"))

    @both
    def test_an_archive_cut_short_anywhere_is_refused(self, tmp_path, ending):
        path = archive_of(tmp_path / f"p{ending}", DIGITS)
        content = path.read_bytes().rstrip(b"\0") if ending == ".tar" else path.read_bytes()
        for end in range(0, len(content), 97):
            path.write_bytes(content[:end])
            with pytest.raises(SourceError, match="is not a whole"):
                open_source(str(path))

    def test_a_tar_with_a_damaged_header_says_after_how_many_members(self, tmp_path):
        path = archive_of(tmp_path / "p.tar", DIGITS)
        content = bytearray(path.read_bytes())
        content[4 * 1024 + 10] ^= 1
        path.write_bytes(content)
        with pytest.raises(SourceError, match="what follows is not a header, after 4 members"):
            open_source(str(path))

    def test_tars_behind_one_another_are_read_on(self, tmp_path, caplog):
        names = list(DIGITS)
        first = archive_of(tmp_path / "p.tar", {n: DIGITS[n] for n in names[:4]}).read_bytes()
        second = archive_of(tmp_path / "q.tar", {n: DIGITS[n] for n in names[4:]}).read_bytes()
        (tmp_path / "p.tar").write_bytes(first + second)
        assert contents(open_source(str(tmp_path / "p.tar"))) == DIGITS
        assert not caplog.records
        (tmp_path / "p.tar").write_bytes(first + second + b"signature" * 99)
        assert contents(open_source(str(tmp_path / "p.tar"))) == DIGITS
        assert "behind its end are not those of a tar" in caplog.text

    def test_sparse_files_and_endless_sizes_in_a_tar(self, tmp_path):
        with tarfile.open(tmp_path / "p.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            add_to_tar(tar, "1.jpg", b"x", type=tarfile.GNUTYPE_SPARSE)
            add_to_tar(tar, "2.jpg", b"y")
        source = open_source(str(tmp_path / "p.tar"))
        assert "sparse" in problems(source)["1.jpg"]
        info = tarfile.TarInfo("3.jpg")
        info.size = -1024
        header = info.tobuf(tarfile.GNU_FORMAT)
        (tmp_path / "p.tar").write_bytes(header + bytes(1024))
        with pytest.raises(SourceError, match="not a whole tar"):
            open_source(str(tmp_path / "p.tar"))

    def test_headers_that_keep_a_regular_expression_busy_are_refused(self, tmp_path):
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.XHDTYPE, 10**6
        (tmp_path / "p.tar").write_bytes(info.tobuf() + b"1" * 10**6 + bytes(10240))
        begin = time.monotonic()
        with pytest.raises(SourceError, match="a number that is too long"):
            open_source(str(tmp_path / "p.tar"))
        assert time.monotonic() - begin < 5

    @pytest.mark.parametrize("ending", ["tar.gz", "tgz", "tar.bz2", "tar.xz", "7z"])
    def test_compressed_archives_are_refused_with_what_to_do(self, tmp_path, ending):
        mode = {"tgz": "gz", "7z": "gz"}.get(ending, ending[4:])
        path = tmp_path / f"p.{ending}"
        with tarfile.open(path, f"w:{mode}") as tar:
            add_to_tar(tar, "a/1.jpg", b"1")
        for name in (f"p.{ending}", "p.tar"):
            with pytest.raises(SourceError, match=r"Unpack it .* or pack the images again as .zip"):
                open_source(str(path.rename(tmp_path / name)))
            path = tmp_path / name

    @pytest.mark.parametrize("seed", range(25))
    @both
    def test_mutated_archives_give_sentences(self, tmp_path, ending, seed):
        rng = random.Random(seed)
        path = archive_of(tmp_path / f"p{ending}", DIGITS)
        if ending == ".zip" and seed % 2:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
                for name, content in DIGITS.items():
                    file.writestr(name, content)
        original = path.read_bytes()
        for _ in range(20):
            path.write_bytes(mutated(original, rng))
            try:
                source = open_source(str(path))
            except SourceError as err:
                assert str(path) in str(err)  # noqa: PT017 it need not come
                continue
            found = problems(source)
            assert all(reason.endswith((".", "bomb.")) for reason in found.values())
            if ending == ".zip":  # a tar has no checksums
                right = [i for i, s in enumerate(source.samples) if s.sample_id not in found]
                assert {source.read(i) for i in right} <= set(DIGITS.values())


class TestReading:
    @both
    def test_threads_read_at_once(self, tmp_path, ending):
        expected = {f"a/{i:04d}.jpg": str(i).encode() * (i % 99) for i in range(1000)}
        source = open_source(str(archive_of(tmp_path / f"p{ending}", expected)))
        order = list(range(1000)) * 3
        random.Random(0).shuffle(order)
        with ThreadPoolExecutor(8) as pool:
            for index, content in zip(order, pool.map(source.read, order), strict=True):
                assert content == expected[source.samples[index].sample_id]

    @both
    def test_processes_forked_after_it_was_opened_read_at_once(self, tmp_path, ending):
        path = archive_of(tmp_path / f"p{ending}", {f"a/{i}.jpg": b"%d" % i for i in range(2500)})
        script = f"""
import multiprocessing
from featx.images.sources import open_source
source = open_source({str(path)!r})
def check(offset):
    for i in range(len(source.samples)):
        k = (i * 7 + offset) % len(source.samples)
        assert source.samples[k].sample_id == f"a/{{source.read(k).decode()}}.jpg"
    return 1
with multiprocessing.get_context("fork").Pool(4) as pool:
    assert sum(pool.map(check, range(4), 1)) == 4
"""
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

    @both
    def test_each_image_has_a_stamp_of_its_own_that_lasts(self, tmp_path, ending):
        path = archive_of(tmp_path / f"p{ending}", DIGITS)
        stamps = [open_source(str(path)).stamp(i) for i in range(6) for _ in range(2)]
        assert len(set(stamps)) == 6
        assert stamps[::2] == stamps[1::2]
        assert all(number >= 0 for stamp in stamps for number in stamp)
        time.sleep(0.02)
        os.utime(path, ns=(0, 0))
        assert not set(stamps) & {open_source(str(path)).stamp(i) for i in range(6)}

    @both
    def test_an_archive_that_changes_is_not_read_with_old_places(self, tmp_path, ending):
        path = archive_of(tmp_path / f"p{ending}", DIGITS)
        source = open_source(str(path))
        other = {name: content[::-1] for name, content in DIGITS.items()}
        archive_of(tmp_path / f"q{ending}", other).replace(path)
        with pytest.raises(ImageError, match="was changed since its files were listed") as caught:
            source.read(0)
        assert not caught.value.is_permanent
        source = open_source(str(path))
        assert contents(source) == other
        path.unlink()
        with pytest.raises(ImageError, match="No such file"):
            source.read(0)

    @pytest.mark.slow
    def test_a_zip_of_70000_files(self, tmp_path):
        path = archive_of(tmp_path / "p.zip", ((f"{i}.jpg", b"%d" % i) for i in range(70_000)))
        source = open_source(str(path))
        assert len(source.samples) == 70_000
        assert {source.read(i) for i in range(0, 70_000, 999)} == {
            os.path.splitext(source.samples[i].sample_id)[0].encode() for i in range(0, 70_000, 999)
        }

    @both
    def test_archives_beyond_4_gb(self, tmp_path, ending):
        path, gap = tmp_path / f"p{ending}", 5 * 2**30
        if ending == ".tar":
            info = tarfile.TarInfo("film.mov")
            info.size = gap
            path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
            os.truncate(path, gap + 512)
            with path.open("ab") as file:
                file.write(archive_of(tmp_path / "q.tar", DIGITS).read_bytes())
        else:
            path.touch()
            os.truncate(path, gap)
            with zipfile.ZipFile(path, "a") as file:
                for name, content in DIGITS.items():
                    file.writestr(name, content)
        assert contents(open_source(str(path))) == DIGITS

    def test_a_stream_of_zeros_is_no_archive(self, tmp_path):
        for ending in (".zip", ".tar"):
            (tmp_path / f"p{ending}").write_bytes(bytes(10240))
            with pytest.raises(SourceError, match=r"not a whole|holds no images"):
                open_source(str(tmp_path / f"p{ending}"))
