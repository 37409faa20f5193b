"""Manifests: tables as people and their spreadsheets write them."""

from __future__ import annotations

import csv
import io
import logging
import os
from pathlib import Path

import pytest
from archives import listed
from hypothesis import given
from hypothesis import strategies as st

from featx.errors import ImageError, SourceError
from featx.images.sources import SourceOptions, open_source, with_options
from featx.images.sources.manifest import open_manifest
from featx.images.sources.sample import NO_FILE, SPLITS, FileSource, Sample

BACKSLASH = "\\"


def write(folder: Path, content: str | bytes, name: str = "images.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(folder: Path, content: str | bytes, message: str, name: str = "images.csv") -> None:
    path = write(folder, content, name)
    with pytest.raises(SourceError, match=message) as caught:
        open_manifest(path)
    assert f"'{path}'" in str(caught.value)


class TestTables:
    def test_paths_labels_and_splits(self, tmp_path):
        table = "path,label,split\nb/2.jpg,bees,val\na.jpg,ants,train\nc.jpg,bees,test\n"
        source = open_manifest(write(tmp_path, table))
        assert source.classes == ("ants", "bees")
        assert listed(source) == [
            ("b/2.jpg", "bees", "val"),  # in the table's order
            ("a.jpg", "ants", "train"),
            ("c.jpg", "bees", "test"),
        ]

    def test_no_split_means_train_and_no_label_unlabelled(self, tmp_path):
        source = open_manifest(write(tmp_path, "path,label\n1.jpg,a\n2.jpg,\n3.jpg,  \n"))
        expected = [("1.jpg", "a", "train"), ("2.jpg", None, "train"), ("3.jpg", None, "train")]
        assert listed(source) == expected
        blank = open_manifest(write(tmp_path, "path,label,split\n1.jpg,a,\n2.jpg,a, \n"))
        assert {sample.split for sample in blank.samples} == {"train"}

    @pytest.mark.parametrize("split", ["valid", "Validation", " VAL ", "val"])
    def test_splits_go_by_many_names(self, tmp_path, split):
        source = open_manifest(write(tmp_path, f"path,label,split\n1.jpg,a,{split}\n"))
        assert source.samples[0].split == "val"

    def test_columns_in_any_order_and_others_ignored(self, tmp_path):
        source = open_manifest(write(tmp_path, "note,label,path\nblurred,ants,1.jpg\n"))
        assert listed(source) == [("1.jpg", "ants", "train")]

    def test_a_mask_beside_the_label_may_be_long(self, tmp_path):
        table = f"path,mask,label\n1.jpg,{'1 2 ' * 100_000},ants\n"
        assert listed(open_manifest(write(tmp_path, table))) == [("1.jpg", "ants", "train")]

    def test_images_of_a_group(self, tmp_path):
        table = "path,label,Group,split\n1.jpg,a, patient 7 ,val\n2.jpg,b,,\n3.jpg,a,patient 7,\n"
        source = open_manifest(write(tmp_path, table))
        assert [sample.group for sample in source.samples] == ["patient 7", "", "patient 7"]
        plain = open_manifest(write(tmp_path, "path,label\n1.jpg,a\n"))
        assert plain.samples == (Sample("1.jpg", 0, "train", group=""),)

    def test_tabs_in_a_tsv(self, tmp_path):
        table = "path\tlabel\na,b.jpg\tred, big\n"
        for name in ("x.tsv", "x.TSV"):
            source = open_manifest(write(tmp_path, table, name))
            assert listed(source) == [("a,b.jpg", "red, big", "train")]

    @pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
    @pytest.mark.parametrize("delimiter", [",", "\t", ";"])
    def test_the_delimiter_shows_in_the_first_line(self, tmp_path, name, delimiter):
        rows = [["path", "label", "split"], ["a.jpg", "ants", "val"], ["b.jpg", "bees", ""]]
        table = "\n".join(delimiter.join(row) for row in rows)
        source = open_manifest(write(tmp_path, table, name))
        assert listed(source) == [("a.jpg", "ants", "val"), ("b.jpg", "bees", "train")]

    def test_a_comma_in_the_first_line_outweighs_a_semicolon(self, tmp_path):
        table = "path,label,note; or not\na;b.jpg,x;y,\n"
        assert listed(open_manifest(write(tmp_path, table))) == [("a;b.jpg", "x;y", "train")]

    @pytest.mark.parametrize("header", ["Path,Label", " PATH , LABEL ", "\ufeffpath,Label"])
    def test_columns_in_any_case_and_with_spaces(self, tmp_path, header):
        source = open_manifest(write(tmp_path, f"{header},SPLIT\n1.jpg,Ants,TEST\n"))
        assert listed(source) == [("1.jpg", "Ants", "test")]

    @pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
    def test_what_spreadsheets_write(self, tmp_path, newline, mark):
        lines = ["path,label", '"a ""b"".jpg","grün, hell"', "", "2.jpg,x", ""]
        table = mark + newline.join(lines).encode()
        source = open_manifest(write(tmp_path, table))
        expected = [('a "b".jpg', "grün, hell", "train"), ("2.jpg", "x", "train")]
        assert listed(source) == expected

    names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=8)

    @given(st.dictionaries(names, st.tuples(names, st.sampled_from(SPLITS)), min_size=1))
    def test_what_was_written_is_read(self, tmp_path, rows):
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow(["path", "label", "split"])
        expected = []
        for number, (name, (label, split)) in enumerate(rows.items()):
            sample_id = f"{number}/{name.replace('/', '_').replace(BACKSLASH, '_')}.jpg"
            writer.writerow([sample_id, label, split])
            expected.append((sample_id, label, split))
        source = open_manifest(write(tmp_path, buffer.getvalue()))
        assert listed(source) == expected
        assert list(source.classes) == sorted({label for _, label, _ in expected})

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
    def test_what_spreadsheets_write_as_unicode_text(self, tmp_path, encoding):
        table = "path\tlabel\r\nü.jpg\tgrün\r\n".encode(encoding)
        assert listed(open_manifest(write(tmp_path, table, "x.tsv"))) == [
            ("ü.jpg", "grün", "train")
        ]

    def test_an_image_listed_twice_alike_is_used_once_and_said(self, tmp_path, caplog):
        table = "path,label,split\n1.jpg,a,\n2.jpg,b,val\n./1.jpg,a ,train\n1.jpg,a,\n"
        source = open_manifest(write(tmp_path, table))
        assert listed(source) == [("1.jpg", "a", "train"), ("2.jpg", "b", "val")]
        (record,) = caplog.records
        assert "lists 2 images again, with the same label (line 4 first)" in record.getMessage()

    def test_a_bar_separates_tags(self, tmp_path):
        assert open_manifest(write(tmp_path, "path,label\n1.jpg,a|b\n2.jpg,a\n")).has_tags
        assert not open_manifest(write(tmp_path, "path,label\n1.jpg,ab\n2.jpg,a\n")).has_tags

    def test_one_path_has_one_name(self, tmp_path):
        source = open_manifest(write(tmp_path, "path,label\n./a//b.jpg,x\n"))
        assert source.samples == (Sample("a/b.jpg", 0, "train"),)


class TestRefusals:
    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ("", "found nothing"),
            ("\n\n", "found nothing"),
            ("path|label\n1.jpg|ants\n", "needs a column of paths.*found 'path.label'"),
            ("path;label\n1.jpg,ants\n", "line 2: expected 2 fields .*, found 1"),
            ("Path,PATH,label\n1.jpg,1.jpg,a\n", "two columns called path"),
            ("photo,kind\n1.jpg,ants\n", "found 'photo', 'kind'.*path_column=.*label_column="),
            ("1.jpg,ants\n2.jpg,bees\n", "found '1.jpg', 'ants'"),
            ("path,label,label\n1.jpg,a,b\n", "two columns called label"),
            ("path,label,split,Split\n1.jpg,a,,\n", "two columns called split"),
            ("path,group,label,GROUP\n1.jpg,g,a,g\n", "two columns called group"),
            ("path,label\n", "lists no images"),
            ("path,label\n\n\n", "lists no images"),
            ("path,label\n1.jpg,a\n,b\n", "line 3: the path is empty"),
            (
                "path,label\n1.jpg,a\n2.jpg,b\n1.jpg,c\n",
                "lines 2 and 4: '1.jpg' is listed twice, with label 'a' and label 'c'",
            ),
            ("path,label\n1.jpg,a\n./1.jpg,\n", "lines 2 and 3: .*with label 'a' and label ''"),
            ("path,label,split\na,x,val\na,x,test\n", "2 and 3.*split 'val' and split 'test'"),
            ("path,label,group\na,x,1\na,x,2\n", "lines 2 and 3.*group '1' and group '2'"),
            ("path,label,split\n1.jpg,a,pred\n", "line 2: split must be .*; got 'pred'"),
            ('path,label\n"a\nb.jpg",a\n2.jpg\n', "line 4: expected 2 fields"),
            ('path,label\n1.jpg,a\n"a\nb.jpg"\n', "lines 3 to 4: expected 2 fields"),
            ('path,label\n"a\nb.jpg",a\n,a\n', "line 4: the path is empty"),
            ('path,label\n1.jpg,"a\n2.jpg,b\n3.jpg,"c"\n', "lines 2 to 4: .*expected"),
            ('path,"label"x\n1.jpg,a\n', "line 1: .*expected"),
            ("path,label\n1.jpg,a\n2.jpg\n", "line 3: expected 2 fields .*, found 1"),
            ("path,label\nmy, photo.jpg,ants\n", "line 2: expected 2 fields .*, found 3"),
            ('path,label\n1.jpg,"a"b\n', "line 2: .*expected.*Double quotes"),
            ('path,label\n1.jpg,a\n2.jpg,"a\n', "line 3: unexpected end"),
        ],
        ids=lambda value: repr(value)[:40],
    )
    def test_the_message_says_what_and_where(self, tmp_path, table, message):
        refused(tmp_path, table, message)

    @pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
    @pytest.mark.parametrize("before", [0, 1, 5000])
    def test_another_encoding_is_refused_where_it_shows(self, tmp_path, newline, mark, before):
        rows = ["path,label", *(f"{n}.jpg,grün" for n in range(before))]
        content = mark + newline.join([*rows, ""]).encode() + "x.jpg,abé".encode("latin-1")
        message = f"line {before + 2}: byte 0xe9 is not UTF-8 .*Save the table as UTF-8"
        refused(tmp_path, content, message)

    def test_a_fault_in_a_utf_16_table_is_found(self, tmp_path):
        content = "path,label\n1.jpg,a\n2.jpg,b\n".encode("utf-16")
        refused(tmp_path, content + b"x", "line 4: byte 0x78 is not UTF-16")
        refused(tmp_path, content + "3.jpg\n".encode("utf-16-le"), "line 4: expected 2 fields")

    @pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
    def test_the_line_is_right_in_every_encoding_and_with_every_line_end(
        self, tmp_path, encoding, newline
    ):
        lines = ["path,label", '"a,1.jpg","two', 'lines"', "ü.jpg,b", "", "2.jpg", "3.jpg,c"]
        refused(tmp_path, newline.join(lines).encode(encoding), "line 6: expected 2 fields")

    @given(st.binary(max_size=200))
    def test_any_bytes_are_a_table_or_a_source_error(self, tmp_path, content):
        path = write(tmp_path, b"path,label\n" + content)
        try:
            source = open_manifest(path)
        except SourceError:
            return
        assert source.samples

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path, monkeypatch):
        path = write(tmp_path, "path,label\n1.jpg,a\n")

        def locked(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", locked)
        with pytest.raises(SourceError, match="Permission denied"):
            open_manifest(path)


class TestReading:
    def test_paths_are_relative_to_the_table(self, tmp_path, monkeypatch):
        (tmp_path / "sets" / "in").mkdir(parents=True)
        for name in ("sets/in/1.jpg", "2.jpg"):
            (tmp_path / name).write_bytes(name.encode())
        table = f"path,label\nin/1.jpg,a\n../2.jpg,a\n{tmp_path}/2.jpg,a\n"
        write(tmp_path / "sets", table)
        monkeypatch.chdir(tmp_path / "sets" / "in")
        source = open_manifest(Path("../images.csv"))
        monkeypatch.chdir("/")
        assert [source.read(index) for index in range(3)] == [b"sets/in/1.jpg", b"2.jpg", b"2.jpg"]
        assert source.uri == str(tmp_path / "sets" / "images.csv")

    def test_an_absolute_path_and_dots_stay_as_they_are_written(self, tmp_path):
        (tmp_path / "set").mkdir()
        (tmp_path / "1.jpg").write_bytes(b"one")
        names = [f"{tmp_path}/1.jpg", "../1.jpg", "../set/../1.jpg"]
        source = open_manifest(write(tmp_path / "set", "path,label\n" + ",a\n".join([*names, ""])))
        assert [sample.sample_id for sample in source.samples] == names
        assert {source.read(index) for index in range(3)} == {b"one"}
        assert len({source.stamp(index) for index in range(3)}) == 1

    def test_images_that_are_missing_are_found_by_their_stamp_and_when_read(self, tmp_path):
        (tmp_path / "1.jpg").write_bytes(b"one")
        source = open_manifest(write(tmp_path, "path,label\n0.jpg,a\n1.jpg,a\n2.jpg,b\n"))
        missing = [index for index in range(3) if source.stamp(index) == NO_FILE]
        assert missing == [0, 2]
        for index in missing:
            with pytest.raises(ImageError, match=f"'{index}.jpg': cannot be read: No such file"):
                source.read(index)

    def test_opening_looks_no_image_up(self, tmp_path, monkeypatch):
        path = write(tmp_path, "path,label\n" + "".join(f"{i}.jpg,a\n" for i in range(50)))
        looked_up, stat = [], os.stat
        monkeypatch.setattr(os, "stat", lambda *a, **o: looked_up.append(a) or stat(*a, **o))
        source = open_manifest(path)
        assert len(source.samples) == 50
        assert not [path for (path, *_) in looked_up if str(path).endswith(".jpg")]

    @pytest.mark.parametrize("name", ["gone.jpg", "a\0b.jpg", "x" * 300, "."])
    def test_what_cannot_be_read_is_an_image_error(self, tmp_path, name):
        source = open_manifest(write(tmp_path, f"path,label\n{name},a\n"))
        with pytest.raises(ImageError) as caught:
            source.read(0)
        assert caught.value.sample_id == name

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.jpg")
        source = open_manifest(write(tmp_path, "path,label\npipe.jpg,a\n"))
        with pytest.raises(ImageError, match="not a regular file"):
            source.read(0)


class TestNamesOfColumns:
    @pytest.mark.parametrize(
        ("header", "said"),
        [
            ("filename,class", "path from 'filename', label from 'class'"),
            ("File Name,Category", "path from 'File Name', label from 'Category'"),
            ("image_id,target", "path from 'image_id', label from 'target'"),
            ("IMAGE,label", "path from 'IMAGE'"),
            ("path,class_name", "label from 'class_name'"),
        ],
    )
    def test_common_ones_are_recognised_and_said(self, tmp_path, caplog, header, said):
        caplog.set_level(logging.INFO)
        source = open_manifest(write(tmp_path, f"id,{header}\n007,1.jpg,ants\n"))
        assert listed(source) == [("1.jpg", "ants", "train")]
        assert f"read {said}." in caplog.text

    @pytest.mark.parametrize("header", ["image_id,path,label", "path,filename,label"])
    def test_path_says_what_it_is(self, tmp_path, header):
        fields = ",".join(f"{name}.jpg" for name in header.split(","))
        source = open_manifest(write(tmp_path, f"{header}\n{fields}\n"))
        assert source.samples[0].sample_id == "path.jpg"

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            (
                "path,label,class",
                "'label' and 'class', and each may be the label.*label_column='lab",
            ),
            ("image,filename,label", "'image' and 'filename', and each may be the path"),
        ],
    )
    def test_two_recognised_ones_are_never_chosen_from(self, tmp_path, header, message):
        refused(tmp_path, f"{header}\na,b,c\n", message)
        column = "label_column" if "class" in header else "path_column"
        path = write(tmp_path, f"{header}\na,b,c\n")
        assert open_manifest(path, SourceOptions(**{column: header.split(",")[1]})).samples

    def test_columns_are_taken_as_said(self, tmp_path):
        table = "label,photo,Breed,fold,patient\n9,1,pug,val,p\n8,2.JPG,lab,,\n"
        options = SourceOptions(
            path_column="photo", label_column="Breed", split_column="fold",
            group_column="patient", root="/data", suffix=".jpg",
        )  # fmt: skip
        source = open_manifest(write(tmp_path, table), options)
        assert listed(source) == [("1.jpg", "pug", "val"), ("2.JPG", "lab", "train")]
        assert [sample.group for sample in source.samples] == ["p", ""]
        assert source.folder == "/data"
        again = open_source(source.uri)
        assert isinstance(again, FileSource)
        assert (again.uri, again.samples, again.folder) == (source.uri, source.samples, "/data")

    @pytest.mark.parametrize(
        ("column", "message"),
        [("breed", "no column called 'breed'.*found 'a', 'Breed', 'b', 'b'"), ("b", "two columns")],
    )
    def test_a_column_that_is_not_there_once_is_refused(self, tmp_path, column, message):
        path = write(tmp_path, "a,Breed,b,b\n1,2,3,4\n")
        with pytest.raises(SourceError, match=message):
            open_manifest(path, SourceOptions(path_column="a", label_column=column))
        with pytest.raises(SourceError, match="are said to be one column"):
            open_manifest(path, SourceOptions(path_column="a", label_column="a"))

    def test_texts_stay_as_they_are(self, tmp_path):
        labels = ["NA", "None", "1.0", "True", "007", "null", "nan"]
        rows = "".join(f"{label},{label}\n" for label in labels)
        source = open_manifest(write(tmp_path, f"path,label\n{rows}"))
        assert listed(source) == [(label, label, "train") for label in labels]


class TestBackslashes:
    TABLE = "path,label\ntrain\\ants\\1.jpg,ants\n./b\\2.jpg,bees\n"

    def test_they_are_read_as_slashes_and_said(self, tmp_path, caplog):
        caplog.set_level(logging.INFO)
        source = open_manifest(write(tmp_path, self.TABLE))
        assert [sample.sample_id for sample in source.samples] == ["train/ants/1.jpg", "b/2.jpg"]
        assert caplog.text.count("read as slashes") == 1

    def test_they_stay_where_a_file_is_called_so(self, tmp_path, caplog):
        (tmp_path / "train\\ants\\1.jpg").touch()
        source = open_manifest(write(tmp_path, self.TABLE))
        assert source.samples[0].sample_id == "train\\ants\\1.jpg"


class TestAddresses:
    def test_options_join_those_of_the_address(self, tmp_path):
        path = write(tmp_path, "a,b\n1.jpg,2\n")
        uri = with_options(f"{path}?path_column=a", {"label_column": "b", "root": "~"})
        assert uri == f"{path}?path_column=a&label_column=b&root=~"
        source = open_source(uri)
        assert isinstance(source, FileSource)
        assert source.folder == str(Path("~").expanduser())
        assert (
            open_source(
                with_options(
                    str(path), {"path_column": "a", "label_column": "b", "root": "/\udcff é"}
                )
            ).folder
            == "/\udcff é"
        )
        assert with_options("no/such.csv", {"suffix": ".j&g"}) == "no/such.csv?suffix=.j%26g"

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("colour=a", "sources have no option 'colour'. Known are path_column, "),
            ("a", "no option 'a'"),
            ("encoding=cp866", "is a table: encoding='cp866' is for an archive"),
        ],
    )
    def test_what_says_nothing_is_refused(self, tmp_path, query, message):
        path = write(tmp_path, "path,label\n1.jpg,2\n")
        with pytest.raises(SourceError, match=message):
            open_source(f"{path}?{query}")

    def test_a_file_with_a_question_mark_is_itself(self, tmp_path):
        path = write(tmp_path, "path,label\n1.jpg,2\n", "a.csv?x=1.csv")
        assert open_source(str(path)).uri == str(path)
        with pytest.raises(SourceError, match=r"'no\.csv\?x=1' does not exist"):
            open_source("no.csv?x=1")

    def test_a_folder_has_no_columns(self, tmp_path):
        with pytest.raises(SourceError, match=r"is a folder: suffix='.jpg' is for a table"):
            open_source(with_options(str(tmp_path), {"suffix": ".jpg"}))
