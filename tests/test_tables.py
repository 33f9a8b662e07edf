"""Csv files as spreadsheets write them are read, or one line names the file, the line and how to save it."""

import codecs

import pytest

from conftest import command
from im2wav.data.manifest import COLUMNS, Manifest
from im2wav.evaluation.evaluation_inputs import read_labels
from im2wav.files import table_bytes, write_atomic
from im2wav.prepare.sources import find_sources, vggsound_sources
from im2wav.tables import read_records, read_rows, read_table

ROWS = [["id", "image", "label"], ["a", "Übung.jpg", "犬, barking"], ["b", "b.jpg", "x; y"], ["c", "c.jpg", ""]]
PLAIN = 'id,image,label\na,Übung.jpg,"犬, barking"\nb,b.jpg,x; y\nc,c.jpg,\n'
EXPECTED = [dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]]
SEMICOLONS = 'id;image;label\na;Übung.jpg;犬, barking\nb;b.jpg;"x; y"\nc;c.jpg;\n'
TABS = "id\timage\tlabel\na\tÜbung.jpg\t犬, barking\nb\tb.jpg\tx; y\nc\tc.jpg\t\n"


@pytest.mark.parametrize("text", [PLAIN, SEMICOLONS, TABS, "sep=;\n" + SEMICOLONS], ids=[",", ";", "tab", "sep=;"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16 of the other order"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("exact", [False, True])
def test_encodings_delimiters_and_line_ends(tmp_path, text, encoding, end, exact):
    path, text = tmp_path / "a.csv", text.replace("\n", end)
    path.write_bytes(codecs.BOM_UTF16_BE + text.encode("utf-16-be") if "other" in encoding else text.encode(encoding))
    assert read_table(path, {"id"}, exact) == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        'ID , Image,LABEL\n a ,Übung.jpg , "犬, barking"\nb\u00a0, b.jpg,x; y\nc,c.jpg, \n',  # spaces, capitals
        'id,image,label,,\na,Übung.jpg,"犬, barking",,\n,,,,\nb,b.jpg,x; y,,\n\nc,c.jpg\n',  # empty cells, short rows
    ],
)
def test_spaces_capitals_and_empty_cells(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    rows = [{name: value for name, value in row.items() if name} for row in read_table(tmp_path / "a.csv", {"id"})]
    assert rows == EXPECTED


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"lacks the columns \['id', 'label'\]; it has \[\]"),
        (b"name,label\n", r"lacks the columns \['id'\]; it has \['name', 'label'\]"),
        (b"id,label,ID\n", "several columns called 'id'"),
        (b"id,label\na\n", "line 2: a row of 1 fields, expected 2"),
        (b"id,label\na,b\n\nc,dog, barking\n", "line 4: a row of 3 fields, expected 2.*quotation marks"),
        ("id,label\na,b\nb,Müller\n".encode("cp1252"), "line 3: not in utf-8.*save it as CSV in UTF-8"),
        ("id,label\n".encode("utf-16-le"), "line 1: contains null bytes; save it as CSV in UTF-8"),
        (codecs.BOM_UTF16_LE + b"i\0d\0,", "line 1: not in utf-16.*save it as CSV in UTF-8"),
        (b'id,label\na,b\nc,"d\ne,f\ng,h\n', "line 3: unexpected end of data; check its quotation marks"),
        (b'id,label\na,b\nc,"5" screen\n', "line 3: .*check its quotation marks"),
        (b"id,label\na," + b"x" * 200_000, "line 2: field larger than field limit"),
        (b"PK\x03\x04\x14\0\0\0\x08\0xl/workbook", "null bytes; save it as CSV in UTF-8"),  # of Excel
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_number(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.csv.*{message}") as caught:
        read_table(tmp_path / "a.csv", {"id", "label"})
    assert "\n" not in str(caught.value)


def test_lines_are_counted_as_editors_do(tmp_path):
    (tmp_path / "a.csv").write_text('id,label\n\na,"two\nlines"\nb,c\n')
    assert [(line, row["id"]) for line, row in read_rows(tmp_path / "a.csv", {"id"})] == [(3, "a"), (5, "b")]
    assert [line for line, _ in read_records(tmp_path / "a.csv")] == [1, 3, 5]


def test_our_own_tables_come_back_exactly(tmp_path):
    rows = [{"id": " a ", "label": 'x "y", z'}, {"id": "b\n", "label": ""}, {"id": "\u00a0", "label": "ü"}]
    write_atomic(tmp_path / "a.csv", table_bytes(("id", "label"), rows))
    assert read_table(tmp_path / "a.csv", {"id"}, exact=True) == rows
    (tmp_path / "a.csv").write_bytes(b"id,label\na\xff,b\n")  # a file name that is not UTF-8
    assert read_table(tmp_path / "a.csv", {"id"}, exact=True) == [{"id": "a\udcff", "label": "b"}]


def test_a_manifest_from_a_spreadsheet(tmp_path):
    text = "\ufeffID; Image ;Label;Split\r\n a ; a.jpg ;dog;Train\r\nb;b.jpg;;TEST\r\n"
    (tmp_path / "manifest.csv").write_text(text)
    sources = find_sources(tmp_path)
    assert [(s.id, s.image, s.label, s.split) for s in sources] == [
        ("a", str(tmp_path / "a.jpg"), "dog", "train"),
        ("b", str(tmp_path / "b.jpg"), "", "test"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("c,", "line 3: 'c' names neither an image nor a video"),
        (",c.jpg", "line 3: id '' cannot be a file name"),
        ("c,c.jpg,,tran", "line 3: 'c' has split='tran'"),
        ("c,c.jpg,Müller".encode("cp1252").decode("latin-1"), "line 3: not in utf-8.*save it as CSV in UTF-8"),
    ],
)
def test_a_row_of_a_manifest_that_is_wrong(tmp_path, capfd, row, message):
    (tmp_path / "manifest.csv").write_bytes(f"id,image,label,split\na,a.jpg,,\n{row}\n".encode("latin-1"))
    with pytest.raises(ValueError, match=f"manifest.csv, {message}"):
        find_sources(tmp_path)
    assert command("embed", f"input={tmp_path}", f"out={tmp_path / 'out'}", "encoder=efficientnet_lite2") == 2
    assert len(capfd.readouterr().err.strip().splitlines()) == 1


def test_a_pairs_folder_whose_manifest_was_saved_by_a_spreadsheet(tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_bytes(table_bytes(COLUMNS, [{"id": "a,b", "split": "train", "samples": 3, "frames": 1}]))
    (pair,) = Manifest.read(path)
    path.write_bytes(path.read_text().replace('"a,b"', "a|b").replace(",", ";").replace("a|b", "a,b").encode("utf-16"))
    assert list(Manifest.read(path)) == [pair]


def test_labels_and_vggsound_are_read_in_the_same_way(tmp_path):
    (tmp_path / "labels.csv").write_text("sep=;\nLabel;ID\ndog;a\ndog;a\ncat;U\u0308b\n")
    assert read_labels(tmp_path / "labels.csv") == {"a": "dog", "Üb": "cat"}  # names of items are composed
    (tmp_path / "labels.csv").write_text("id,label\na,dog\na,cat\n")
    with pytest.raises(ValueError, match=r"labels.csv, line 3: id 'a' has another label above"):
        read_labels(tmp_path / "labels.csv")
    (tmp_path / "ID_000030.mp4").touch()
    (tmp_path / "vggsound.csv").write_bytes("\ufeffID;30;dog, barking;train\r\n\r\n".encode("utf-16-le"))
    (source,) = vggsound_sources(str(tmp_path), str(tmp_path / "vggsound.csv"))
    assert (source.id, source.label) == ("ID_000030", "dog, barking")
