"""Folders: every layout, and what people's folders hold besides images."""

from __future__ import annotations

import inspect
import os
import sys
import tracemalloc
import unicodedata
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from archives import listed
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.errors import ImageError, SourceError
from featx.images.decode import decode_image
from featx.images.sources import NO_FILE, entries
from featx.images.sources.entries import EXTENSIONS
from featx.images.sources.folder import list_images, open_folder


def touch(root: Path, *names: str) -> Path:
    """Make files, each holding its own name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))
    return root


class TestLayouts:
    def test_class_folders(self, tmp_path):
        source = open_folder(touch(tmp_path, "bees/2.jpg", "ants/1.jpg", "bees/1.PNG"))
        assert source.classes == ("ants", "bees")
        assert listed(source) == [
            ("ants/1.jpg", "ants", "train"),
            ("bees/1.PNG", "bees", "train"),
            ("bees/2.jpg", "bees", "train"),
        ]

    def test_images_alone_have_no_label(self, tmp_path):
        source = open_folder(touch(tmp_path, "b.jpg", "a.gif"))
        assert source.classes == ()
        assert listed(source) == [("a.gif", None, "train"), ("b.jpg", None, "train")]

    def test_images_beside_class_folders_have_no_label(self, tmp_path):
        source = open_folder(touch(tmp_path, "ants/1.jpg", "new.jpg"))
        assert source.classes == ("ants",)
        assert listed(source) == [("ants/1.jpg", "ants", "train"), ("new.jpg", None, "train")]

    def test_split_folders_join_classes_by_name(self, tmp_path):
        touch(tmp_path, "train/bees/1.jpg", "train/cats/1.jpg", "val/ants/1.jpg", "val/cats/2.jpg")
        source = open_folder(touch(tmp_path, "test/bees/9.jpg"))
        assert source.classes == ("ants", "bees", "cats")
        assert listed(source) == [
            ("test/bees/9.jpg", "bees", "test"),
            ("train/bees/1.jpg", "bees", "train"),
            ("train/cats/1.jpg", "cats", "train"),
            ("val/ants/1.jpg", "ants", "val"),
            ("val/cats/2.jpg", "cats", "val"),
        ]

    @pytest.mark.parametrize(
        ("folder", "split"),
        [
            ("train", "train"),
            ("Train", "train"),
            ("training", "train"),
            ("val", "val"),
            ("valid", "val"),
            ("VALIDATION", "val"),
            ("test", "test"),
            ("TEST", "test"),
        ],
    )
    def test_splits_go_by_many_names(self, tmp_path, folder, split):
        source = open_folder(touch(tmp_path, f"{folder}/ants/1.jpg"))
        assert listed(source) == [(f"{folder}/ants/1.jpg", "ants", split)]

    def test_split_folders_without_classes(self, tmp_path):
        source = open_folder(touch(tmp_path, "train/1.jpg", "test/2.jpg"))
        assert source.classes == ()
        assert listed(source) == [("test/2.jpg", None, "test"), ("train/1.jpg", None, "train")]

    def test_images_lie_at_any_depth(self, tmp_path):
        source = open_folder(touch(tmp_path, "ants/red/big/1.jpg", "ants/1.jpg", "bees/test/1.jpg"))
        assert listed(source) == [
            ("ants/1.jpg", "ants", "train"),
            ("ants/red/big/1.jpg", "ants", "train"),
            ("bees/test/1.jpg", "bees", "train"),
        ]

    def test_same_names_in_several_folders_stay_apart(self, tmp_path):
        source = open_folder(touch(tmp_path, "a/1.jpg", "b/1.jpg", "a/x/1.jpg", "a/1.JPG"))
        ids = [sample.sample_id for sample in source.samples]
        assert len(set(ids)) == 4

    def test_an_empty_class_folder_keeps_its_index(self, tmp_path):
        touch(tmp_path, "a/1.jpg", "c/1.jpg")
        (tmp_path / "b").mkdir()
        source = open_folder(tmp_path)
        assert source.classes == ("a", "b", "c")
        assert [sample.label for sample in source.samples] == [0, 2]

    def test_a_class_may_be_called_test_which_is_said(self, tmp_path, caplog):
        source = open_folder(touch(tmp_path, "test/1.jpg", "control/1.jpg"))
        assert source.classes == ("control", "test")
        assert {sample.split for sample in source.samples} == {"train"}
        assert "test is taken for a class, beside other class folders." in caplog.text

    def test_splits_beside_class_folders_are_refused(self, tmp_path):
        with pytest.raises(
            SourceError, match=r"mixes split folders \(test, train\) with.*\(ants\)"
        ):
            open_folder(touch(tmp_path, "train/a/1.jpg", "test/a/1.jpg", "ants/1.jpg"))

    def test_one_split_of_classes_beside_other_folders_is_refused(self, tmp_path):
        # As classes "raw" and "train", all images of a kind would fall into one class.
        with pytest.raises(SourceError, match=r"mixes split folders \(train\) with others \(raw\)"):
            open_folder(touch(tmp_path, "train/ants/1.jpg", "train/bees/1.jpg", "raw/1.jpg"))

    def test_two_folders_for_one_split_are_refused(self, tmp_path):
        with pytest.raises(SourceError, match="two folders for one split: val, valid"):
            open_folder(touch(tmp_path, "val/a/1.jpg", "valid/a/1.jpg"))


class TestJunk:
    def test_hidden_files_and_other_files_are_counted_not_listed(self, tmp_path):
        touch(tmp_path, "ants/1.jpg", "ants/._1.jpg", "ants/.DS_Store", "ants/Thumbs.db")
        touch(tmp_path, "ants/notes.txt", "ants/1.jpg.part", "readme.md", ".git/x.jpg", "ants/jpg")
        source = open_folder(touch(tmp_path, ".ipynb_checkpoints/1-checkpoint.jpg"))
        assert [sample.sample_id for sample in source.samples] == ["ants/1.jpg"]
        assert source.classes == ("ants",)
        assert source.ignored == {
            **{"hidden": 4, ".db": 1, ".txt": 1, ".part": 1, ".md": 1, "without extension": 1}
        }

    def test_what_a_mac_leaves_in_archives_is_no_class(self, tmp_path):
        source = open_folder(touch(tmp_path, "ants/1.jpg", "__MACOSX/ants/._1.jpg"))
        assert source.classes == ("ants",)
        touch(tmp_path, "split/train/a/1.jpg", "split/test/a/1.jpg", "split/__MACOSX/x/._1.jpg")
        assert open_folder(tmp_path / "split").classes == ("a",)

    @pytest.mark.parametrize(
        "junk",
        [
            *("._1.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "ants.zip", "labels.csv"),
            *("__MACOSX/ants/._1.jpg", "__MACOSX/ants/1.jpg", ".thumbnails/1.jpg"),
            *(".ipynb_checkpoints/1-checkpoint.jpg", "@eaDir.txt", ".Trash-0/files/1.jpg"),
        ],
    )
    @pytest.mark.parametrize("layout", ["", "train/"])
    @pytest.mark.parametrize("inside", ["", "ants/", "ants/red/"])
    def test_what_systems_and_tools_leave_is_ignored_counted_and_no_class(
        self, tmp_path, junk, layout, inside
    ):
        touch(tmp_path, f"{layout}ants/1.jpg", f"{layout}ants/red/1.jpg", f"{layout}bees/1.jpg")
        source = open_folder(touch(tmp_path, layout + inside + junk))
        assert source.classes == ("ants", "bees")
        assert len(source.samples) == 3
        assert sum(source.ignored.values()) == 1  # a whole folder of junk counts as one

    def test_files_beside_and_in_split_folders_are_counted(self, tmp_path):
        touch(tmp_path, "train/a/1.jpg", "train/a/x.txt", "train/y.txt", "val/a/2.jpg", "val/.z")
        source = open_folder(touch(tmp_path, "readme.md", ".hidden", "stray.jpg"))
        assert [sample.sample_id for sample in source.samples] == ["train/a/1.jpg", "val/a/2.jpg"]
        assert source.ignored == {
            **{".txt": 2, ".md": 1, "hidden": 2, "images beside split folders": 1}
        }

    @pytest.mark.parametrize(
        "junk",
        [
            *("@eaDir", "#recycle", "@Recycle", ".@__thumb", "#snapshot", "$RECYCLE.BIN", "@tmp"),
            *("System Volume Information", "lost+found", "__MACOSX", ".thumbnails", "__pycache__"),
        ],
    )
    @pytest.mark.parametrize("inside", ["", "ants/", "ants/red/"])
    def test_what_storage_systems_leave_is_no_class_and_no_image(self, tmp_path, junk, inside):
        touch(tmp_path, "ants/1.jpg", "ants/red/1.jpg", "bees/1.jpg")
        touch(tmp_path, f"{inside}{junk}/1.jpg/SYNOPHOTO_THUMB_M.jpg", f"{inside}{junk}/2.jpg")
        source = open_folder(tmp_path)
        assert source.classes == ("ants", "bees")
        assert [s.sample_id for s in source.samples] == list_images(tmp_path)
        assert source.ignored == {"hidden" if junk.startswith(".") else f"{junk}/": 1}

    def test_thumbnails_that_were_copied_along_are_no_images(self, tmp_path):
        touch(tmp_path, "a/1.jpg", "a/SYNOPHOTO_THUMB_M.jpg", "a/SYNOFILE_THUMB_M.png")
        source = open_folder(tmp_path)
        assert (len(source.samples), source.ignored) == (1, {"thumbnail": 2})

    def test_pictures_that_cannot_be_read_are_warned_of(self, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(entries, "image_extensions", lambda: EXTENSIONS)
        touch(tmp_path, "a/1.jpg", "a/IMG_1.HEIC", "a/IMG_2.heic", "a/3.NEF", "a/x.txt")
        source = open_folder(tmp_path)
        assert source.ignored == {".heic": 2, ".nef": 1, ".txt": 1}
        (record,) = caplog.records
        assert "skipped 3 other files: 2 .heic, 1 .nef. HEIC is read once" in record.getMessage()
        assert "featx[heif]" in record.getMessage()

    def test_kinds_are_safe_to_print(self, tmp_path):
        names = ["a.jp\x1b[31m", "b.\u202egpj", "c." + "x" * 40, "d.\udce9", "e.t t"]
        source = open_folder(touch(tmp_path, "a/1.jpg", *names, "a/f.jpg_large", "a/g.jpg~"))
        assert source.ignored == {"with an odd extension": 5, ".jpg_large": 1, ".jpg~": 1}

    def test_the_account_names_pictures_first_and_few_kinds(self):
        found = {f".x{n}": n for n in range(1, 9)} | {".heic": 1, "hidden": 0}
        text = entries.describe_ignored(found)
        assert (
            text == "37 other files: 1 .heic, 8 .x8, 7 .x7, 6 .x6, 5 .x5, 4 .x4, 6 of other kinds"
        )
        assert entries.describe_ignored({".txt": 1}) == "1 other file: 1 .txt"
        assert entries.describe_ignored({}) == ""

    @pytest.mark.parametrize("extension", sorted(EXTENSIONS))
    def test_extensions_in_any_case(self, tmp_path, extension):
        source = open_folder(touch(tmp_path, f"a/1{extension}", f"a/2{extension.upper()}"))
        assert len(source.samples) == 2

    @pytest.mark.parametrize(
        ("names", "found"),
        [
            ((), "it is empty"),
            (("a/x.txt", "b.md", "c.md"), "3 other files: 2 .md, 1 .txt"),
            ((".a/1.jpg",), "1 other file: 1 hidden"),
            (("train/x.txt",), "1 other file: 1 .txt"),
            (("a/1.cr2", "a/2.TXT"), "2 other files: 1 .cr2, 1 .txt"),
        ],
    )
    def test_a_folder_without_images_says_so_and_what_was_expected(self, tmp_path, names, found):
        touch(tmp_path, *names)
        with pytest.raises(SourceError, match="holds no images") as caught:
            open_folder(tmp_path)
        assert f"({found})" in str(caught.value)
        assert ".jpeg" in str(caught.value)
        assert f"'{tmp_path}'" in str(caught.value)


class TestOutputs:
    @pytest.mark.parametrize(
        "files",
        [
            *(("features.h5",), ("features.h5.lock",), ("f.h5.partial", "f.h5.lock")),
            *(("head.safetensors", "notes.txt"), ("model.onnx", "report.html"), ("old/f.h5",)),
        ],
    )
    @pytest.mark.parametrize("layout", ["", "train/"])
    def test_a_folder_of_featx_is_no_class(self, tmp_path, files, layout):
        touch(tmp_path, f"{layout}ants/1.jpg", f"{layout}bees/1.jpg")
        touch(tmp_path, *(f"artifacts/{name}" for name in files))
        source = open_folder(tmp_path)
        assert source.classes == ("ants", "bees")
        assert sum(source.ignored.values()) == len(files)

    def test_the_folder_of_the_output_is_no_class_before_anything_is_in_it(self, tmp_path):
        touch(tmp_path, "ants/1.jpg", "bees/1.jpg")
        for name in ("out", "cats"):
            (tmp_path / name).mkdir()
        source = open_folder(tmp_path, output=tmp_path / "out" / "f.h5")
        assert source.classes == ("ants", "bees", "cats")

    def test_images_beside_an_output_still_count(self, tmp_path):
        touch(tmp_path, "ants/1.jpg", "ants/features.h5", "bees/1.jpg")
        source = open_folder(tmp_path, output=tmp_path / "ants" / "features.h5")
        assert source.classes == ("ants", "bees")
        assert (len(source.samples), source.ignored) == (2, {".h5": 1})


def images_of(*folders: str) -> list[str]:
    return [f"{folder}/{number}.jpg" for folder in folders for number in range(2)]


class TestSplitsByManyNames:
    def split_and_class(self, root: Path, *folders: str) -> Counter[tuple[str | None, str]]:
        source = open_folder(touch(root, *images_of(*folders)))
        assert source.samples == tuple(sorted(source.samples, key=lambda s: s.sample_id))
        assert [s.sample_id for s in source.samples] == list_images(root)
        return Counter((name, split) for _, name, split in listed(source))

    @pytest.mark.parametrize(
        ("train", "val", "test"),
        [
            ("Training", "Validation", "Testing"),
            ("train", "dev", "test"),
            ("TRAIN", "eval", "TEST"),
            ("train_images", "val_images", "test_images"),
            ("seg_train", "seg_val", "seg_test"),
            ("trainset", "valset", "testset"),
            ("train2017", "val2017", "test2017"),
            ("01_train", "02_valid", "03_test"),
            ("ImagesTrain", "ImagesVal", "ImagesTest"),
            ("train-set", "validation set", "test.data"),
            ("seg_train/seg_train", "seg_val/seg_val", "seg_test/seg_test"),
            ("train/train", "val/images", "test/Test"),
            ("data/train", "data/val", "data/test"),
            ("archive/flowers/train", "archive/flowers/val", "archive/flowers/test"),
        ],
    )
    def test_splits_above_classes(self, tmp_path, train, val, test):
        splits = (train, val, test)
        found = self.split_and_class(tmp_path, *(f"{s}/{c}" for s in splits for c in "ab"))
        assert found == {(c, s): 2 for c in "ab" for s in ("train", "val", "test")}

    @pytest.mark.parametrize(
        "names", [("train", "test"), ("Training", "Testing"), ("train_x", "x test")]
    )
    @pytest.mark.parametrize("wrapping", ["", "archive/"])
    def test_splits_below_classes(self, tmp_path, names, wrapping):
        folders = (f"{wrapping}{c}/{s.replace('x', c)}" for s in names for c in ("cat", "dog"))
        found = self.split_and_class(tmp_path, *folders)
        assert found == {(c, s): 2 for c in ("cat", "dog") for s in ("train", "test")}

    def test_a_class_without_images_beside_splits_below_classes(self, tmp_path):
        (tmp_path / "emu").mkdir()
        touch(tmp_path, *images_of("cat/train", "cat/test", "dog/train/deep/er"))
        assert open_folder(tmp_path).classes == ("cat", "dog", "emu")

    @pytest.mark.parametrize("wrapping", ["archive", "a/b/c", "images"])
    def test_classes_in_a_folder_of_their_own(self, tmp_path, wrapping):
        touch(tmp_path, "readme.txt", "__MACOSX/._x")
        found = self.split_and_class(tmp_path, f"{wrapping}/cat", f"{wrapping}/dog/red")
        assert found == {("cat", "train"): 2, ("dog", "train"): 2}

    def test_images_beside_tables_of_boxes(self, tmp_path):
        touch(tmp_path, "labels/train/1.txt", "labels/val/1.txt")
        found = self.split_and_class(
            tmp_path, *(f"images/{s}/{c}" for s in ("train", "val") for c in "ab")
        )
        assert set(found) == {(c, s) for c in "ab" for s in ("train", "val")}
        flat = self.split_and_class(tmp_path / "flat", "train/images", "val/images")
        assert flat == {(None, "train"): 2, (None, "val"): 2}

    def test_folders_without_images_beside_splits_do_no_harm(self, tmp_path):
        touch(tmp_path, "docs/readme.md", "empty/x.txt", *images_of("train/a", "test/a"))
        source = open_folder(tmp_path)
        assert (source.classes, len(source.samples)) == (("a",), 4)

    @pytest.mark.parametrize(
        "folders",
        [
            ("test_tube", "train_station", "cat"),
            ("bullet train", "steam train"),
            ("train", "bus", "car"),
            ("test1", "test2", "control"),
            ("dev board", "keyboard"),
            ("validator", "tester", "trainer"),
        ],
    )
    def test_classes_may_have_such_words_in_their_names(self, tmp_path, folders, caplog):
        assert self.split_and_class(tmp_path, *folders) == {(name, "train"): 2 for name in folders}
        assert not caplog.records

    @pytest.mark.parametrize(
        ("folders", "message"),
        [
            (("seg_train/a", "seg_test/a", "seg_pred"), r"splits? .*\(seg_pred\)|\(seg_pred\)"),
            (("train_cat", "train_dog", "test_cat", "test_dog"), "look like splits"),
            (("train1/a", "train2/a"), "look like splits"),
            (("train/a", "training/a"), "two folders for one split"),
            (("val/a", "eval/a", "train/a"), "two folders for one split"),
            (("train/a", "test_old/a"), r"\(train\) with others \(test_old\)"),
            (("train/a", "val/a", "cats"), r"\(train, val\) with others \(cats\)"),
            (("cat/train", "cat/test", "dog"), "'dog' has images outside"),
            (("cat", "cat/test", "dog", "dog/test"), "'cat' has images outside"),
            (("cat/train", "cat/test", "dog/train", "dog/more"), "'dog' has images outside"),
            (("all/train/train/a", "all/train/val/a"), "has split folders in a split"),
        ],
    )
    def test_what_may_be_meant_either_way_says_which_names_are_told(
        self, tmp_path, folders, message
    ):
        touch(tmp_path, *images_of(*folders))
        with pytest.raises(SourceError, match=message) as caught:
            open_folder(tmp_path)
        assert "called train, val or test" in str(caught.value)
        assert "Rename" in str(caught.value)
        assert len(list_images(tmp_path)) == 2 * len(folders)

    def test_unusual_layouts_are_said(self, tmp_path, caplog):
        caplog.set_level("INFO", logger="featx")
        open_folder(touch(tmp_path, *images_of("x/cat/train", "x/dog/test")))
        assert [record.getMessage() for record in caplog.records] == [
            f"'{tmp_path}': all images are in its folder 'x'.",
            f"'{tmp_path}': splits are told by the folders in each class.",
        ]


def test_a_folder_of_shards_says_how_they_are_named(tmp_path):
    (tmp_path / "train-000.tar").write_bytes(b"")
    with pytest.raises(SourceError, match=r"1 \.tar.*Name shards by braces"):
        open_folder(tmp_path)


def test_listing_knows_neither_splits_nor_classes(tmp_path):
    touch(tmp_path, "b.jpg", "test/x.png", "train/1.jpg", "other/deep/er/2.jpg", ".hidden/3.jpg")
    touch(tmp_path, "@eaDir/b.jpg/SYNOPHOTO_THUMB_M.jpg")
    assert list_images(tmp_path) == ["b.jpg", "other/deep/er/2.jpg", "test/x.png", "train/1.jpg"]


class TestLinks:
    def test_linked_files_and_folders_are_followed(self, tmp_path):
        touch(tmp_path, "store/1.jpg", "store/2.jpg", "photos/ants/0.jpg")
        (tmp_path / "photos/ants/1.jpg").symlink_to("../../store/1.jpg")
        (tmp_path / "photos/bees").symlink_to("../store")
        source = open_folder(tmp_path / "photos")
        assert listed(source) == [
            ("ants/0.jpg", "ants", "train"),  # the label is the folder's, not the target's
            ("ants/1.jpg", "ants", "train"),
            ("bees/1.jpg", "bees", "train"),
            ("bees/2.jpg", "bees", "train"),
        ]
        assert source.read(1) == b"store/1.jpg"

    @pytest.mark.parametrize("target", [".", "..", "../.."])
    @pytest.mark.parametrize("layout", ["ants", "train/ants"])
    def test_a_loop_is_named(self, tmp_path, target, layout):
        touch(tmp_path, f"photos/{layout}/1.jpg")
        (tmp_path / "photos" / layout / "again").symlink_to(target, target_is_directory=True)
        with pytest.raises(SourceError, match=r"/again' is a link to a folder that contains it"):
            open_folder(tmp_path / "photos")

    def test_a_link_to_what_contains_everything_is_found_at_once(self, tmp_path, monkeypatch):
        touch(tmp_path, "photos/ants/1.jpg")
        (tmp_path / "photos/ants/root").symlink_to("/", target_is_directory=True)
        listed, scandir = [], os.scandir
        monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
        with pytest.raises(SourceError, match="ants/root' is a link to a folder that contains it"):
            open_folder(tmp_path / "photos")
        assert len(listed) <= 3

    def test_two_links_to_one_folder_are_no_loop(self, tmp_path):
        touch(tmp_path, "store/1.jpg")
        for name in ("a", "b"):
            (tmp_path / name).symlink_to("store")
        assert open_folder(tmp_path).classes == ("a", "b", "store")

    def test_an_image_link_to_nowhere_or_itself_is_a_bad_image(self, tmp_path):
        touch(tmp_path, "a/0.jpg")
        (tmp_path / "a" / "1.jpg").symlink_to("nowhere.jpg")
        (tmp_path / "a" / "2.jpg").symlink_to("2.jpg")
        source = open_folder(tmp_path)
        assert [sample.sample_id for sample in source.samples] == ["a/0.jpg", "a/1.jpg", "a/2.jpg"]
        for index in (1, 2):
            with pytest.raises(ImageError, match=f"'a/{index}[.]jpg': cannot be read"):
                source.read(index)

    @pytest.mark.parametrize("where", ["bees", "ants/more", "c.v2", "train/bees"])
    @pytest.mark.parametrize("target", ["nowhere", "bees", "notes.txt/x"])
    def test_any_other_broken_link_is_refused_for_it_may_have_been_a_class(
        self, tmp_path, where, target
    ):
        touch(tmp_path, "ants/1.jpg", "train/ants/1.jpg" if "train" in where else "ants/2.jpg")
        (tmp_path / "notes.txt").touch()
        (tmp_path / where).symlink_to(target if target != "bees" else Path(where).name)
        for open_it in (open_folder, list_images):
            with pytest.raises(SourceError, match=rf"'.*/{where}' is a link to .*remove the link"):
                open_it(tmp_path)

    def test_broken_links_among_hidden_entries_do_no_harm(self, tmp_path):
        touch(tmp_path, "ants/1.jpg", "notes.txt")
        (tmp_path / "ants" / ".#1.jpg").symlink_to("user@host.123")  # the lock of an editor
        (tmp_path / "ants" / "notes").symlink_to("../notes.txt")
        source = open_folder(tmp_path)
        assert len(source.samples) == 1
        assert source.ignored == {"hidden": 1, "without extension": 1, ".txt": 1}

    def test_a_folder_given_by_a_link_has_its_real_path(self, tmp_path):
        touch(tmp_path, "photos/a/1.jpg")
        (tmp_path / "link").symlink_to("photos")
        assert open_folder(tmp_path / "link").uri == str(tmp_path / "photos")


class TestNames:
    def test_names_of_any_kind(self, tmp_path):
        odd = os.fsdecode(b"caf\xe9.jpg")
        names = [
            "蚂蚁/ü.jpg",
            f"b/{odd}",
            "b/a b.jpg",
            "b/" + "x" * 246 + ".jpg",
            "b/new\nline.jpg",
        ]
        names += ["b/-rf.jpg", "b/%s.jpg", "b/a,b;'\".jpg", "b/back\\slash.jpg"]
        source = open_folder(touch(tmp_path, *names))
        assert [sample.sample_id for sample in source.samples] == sorted(names)
        for index, name in enumerate(sorted(names)):
            assert source.read(index) == os.fsencode(name)

    def test_names_that_differ_only_in_how_an_accent_is_written(self, tmp_path):
        forms = [unicodedata.normalize(form, "a/größe.jpg") for form in ("NFC", "NFD")]
        source = open_folder(touch(tmp_path, *forms))
        ids = [sample.sample_id for sample in source.samples]
        assert ids == sorted(forms)
        assert [os.fsdecode(source.read(index)) for index in (0, 1)] == ids

    def test_a_long_name_and_a_bad_image_of_an_odd_name(self, tmp_path):
        odd = "b/\x1b[31m\n" + "x" * 240 + ".jpg"
        source = open_folder(touch(tmp_path, odd))
        assert source.stamp(0).size == len(odd)
        with pytest.raises(ImageError) as caught:
            decode_image(source.read(0), sample_id=source.samples[0].sample_id)
        assert caught.value.sample_id == odd

    def test_a_class_name_that_is_not_utf8(self, tmp_path):
        name = os.fsdecode(b"ameisen-gro\xdf")
        assert open_folder(touch(tmp_path, f"{name}/1.jpg")).classes == (name,)

    def test_a_folder_named_like_an_image_is_a_folder(self, tmp_path):
        source = open_folder(touch(tmp_path, "a/b.jpg/1.jpg", "c.jpg/2.jpg"))
        assert source.classes == ("a", "c.jpg")
        assert [sample.sample_id for sample in source.samples] == ["a/b.jpg/1.jpg", "c.jpg/2.jpg"]


class TestOrder:
    names = st.sets(
        st.tuples(st.sampled_from("abcAB"), st.sampled_from(["", "x/", "y/"]), st.integers(0, 12)),
        min_size=1,
        max_size=12,
    )

    @given(names=names, random=st.randoms(use_true_random=False))
    @settings(max_examples=25)
    def test_it_does_not_depend_on_the_file_system(self, tmp_path_factory, names, random):
        root = tmp_path_factory.mktemp("order")
        touch(root, *(f"{folder}/{inner}{number}.jpg" for folder, inner, number in names))
        expected = open_folder(root)
        scandir = os.scandir

        class Shuffled:
            def __init__(self, path: Path) -> None:
                with scandir(path) as entries:
                    self.entries = list(entries)
                random.shuffle(self.entries)

            def __enter__(self):
                return iter(self.entries)

            def __exit__(self, *_: object) -> None: ...

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "scandir", Shuffled)
            assert open_folder(root) == expected
        ids = [sample.sample_id for sample in expected.samples]
        assert ids == sorted(ids)
        assert len(set(ids)) == len(names)

    def test_more_images_do_not_change_ids_or_labels(self, tmp_path):
        before = {s.sample_id: s.label for s in open_folder(touch(tmp_path, "a/2.jpg")).samples}
        after = open_folder(touch(tmp_path, "a/1.jpg", "a/3.jpg", "b/1.jpg"))
        assert before.items() <= {s.sample_id: s.label for s in after.samples}.items()


class TestReading:
    def test_images_are_read_and_decode(self, photos):
        source = open_folder(photos({"train/ants": 3, "val/bees": 2}))
        for index, sample in enumerate(source.samples):
            content = source.read(index)
            assert decode_image(content, sample_id=sample.sample_id).shape[2] == 3

    def test_what_vanished_since_is_named(self, photos):
        source = open_folder(photos({"ants": 2}))
        (Path(source.folder) / "ants" / "001.jpg").unlink()
        with pytest.raises(ImageError, match=r"'ants/001\.jpg': cannot be read: No such file"):
            source.read(1)

    def test_a_folder_that_vanishes_meanwhile_is_named(self, photos, monkeypatch):
        root, stat = photos({"ants": 1, "bees": 1}), os.stat

        def gone(path: str | Path) -> os.stat_result:
            if str(path).rstrip("/").endswith("bees"):
                raise FileNotFoundError(2, "No such file or directory")
            return stat(path)

        monkeypatch.setattr(entries, "os", SimpleNamespace(**vars(os) | {"stat": gone}))
        with pytest.raises(SourceError, match=r"Cannot list the folder '.*bees': No such file"):
            open_folder(root)

    def test_a_folder_that_cannot_be_listed_is_named(self, photos, monkeypatch):
        root, scandir = photos({"ants": 1, "bees": 1}), os.scandir

        def locked(path: Path):
            if Path(path).name == "bees":
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", locked)
        with pytest.raises(SourceError, match="bees': Permission denied"):
            open_folder(root)

    def test_depth_takes_no_stack(self, tmp_path):
        touch(tmp_path, "d/" * 150 + "1.jpg")
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(len(inspect.stack(0)) + 50)
        try:
            assert len(open_folder(tmp_path).samples) == 1
        finally:
            sys.setrecursionlimit(before)

    def test_paths_that_are_too_long_are_an_error_not_a_crash(self, tmp_path, monkeypatch):
        monkeypatch.chdir(touch(tmp_path, "a/1.jpg") / "a")
        for _ in range(20):
            Path("d" * 250).mkdir()
            os.chdir("d" * 250)
        with pytest.raises(
            SourceError, match=r"Cannot list the folder '.*ddd': File name too long"
        ):
            open_folder(tmp_path)

    @pytest.mark.skipif(os.getuid() == 0, reason="root may read anything")
    def test_locked_folders_and_images_are_named(self, photos):
        source = open_folder(root := photos({"ants": 1, "bees": 1}))
        (root / "ants" / "000.jpg").chmod(0)
        with pytest.raises(ImageError, match=r"'ants/000\.jpg': cannot be read: Permission denied"):
            source.read(0)
        (root / "bees").chmod(0)
        assert source.stamp(1) == NO_FILE
        with pytest.raises(SourceError, match="bees': Permission denied"):
            open_folder(root)
        (root / "bees").chmod(0o700)

    def test_a_pipe_or_a_device_named_like_an_image(self, tmp_path):
        (touch(tmp_path, "a/0.jpg") / "a" / "1.jpg").symlink_to("/dev/zero")
        os.mkfifo(tmp_path / "a" / "2.jpg")
        source = open_folder(tmp_path)
        for index in (1, 2):
            with pytest.raises(ImageError, match=rf"'a/{index}\.jpg': not a regular file"):
                source.read(index)

    def test_an_image_costs_little_memory(self, tmp_path):
        (tmp_path / "ants").mkdir()
        for number in range(2000):
            (tmp_path / "ants" / f"image_{number:06d}.jpg").touch()
        open_folder(tmp_path)
        tracemalloc.start()
        try:
            source = open_folder(tmp_path)
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < peak < 2000 * 250  # bytes; two million images fit into 500 MB
        assert not hasattr(source.samples[0], "__dict__")


@pytest.mark.real_data
def test_hymenoptera_is_all_there(data):
    source = open_folder(data / "hymenoptera_data")
    assert source.classes == ("ants", "bees")
    counts = [sum(s.split == split for s in source.samples) for split in ("train", "val", "test")]
    assert counts == [245, 153, 0]  # one of train is the tutorial's imageNotFound.gif
    labels = {split: [s.label for s in source.samples if s.split == split] for split in ("val",)}
    assert labels["val"].count(0) == 70
    gif = [i for i, s in enumerate(source.samples) if s.sample_id.endswith(".gif")]
    assert len(gif) == 1
    assert decode_image(source.read(gif[0]), sample_id="gif").shape[2] == 3
