"""Files as people have them: every format and compression, folders and globs, slices and saved data sets."""

import bz2
import csv
import gzip
import json
import lzma
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from tune_dlrml.config import RowsConfig
from tune_dlrml.data import check_dataset_reference, load_section, parse_dataset_reference
from tune_dlrml.errors import InputError

ROWS = [{"prompt": f"Count to {n}:", "chosen": f" {n}, done", "rejected": " NA"} for n in range(4)]


def text_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def csv_of(rows, delimiter=","):
    lines = [[*rows[0]], *[list(row.values()) for row in rows]]
    quoted = [delimiter.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines]
    return "\r\n".join(quoted).encode()


def written(write):
    sink = pa.BufferOutputStream()
    write(sink)
    return sink.getvalue().to_pybytes()


def stream_of(rows, new=pa.ipc.new_stream):
    table = pa.Table.from_pylist(rows)

    def write(sink):
        with new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)

    return written(write)


FORMATS = {
    ".jsonl": text_of,
    ".ndjson": text_of,
    ".json": lambda rows: json.dumps(rows).encode(),
    ".csv": csv_of,
    ".tsv": lambda rows: csv_of(rows, "\t"),
    ".parquet": lambda rows: written(lambda sink: pyarrow.parquet.write_table(pa.Table.from_pylist(rows), sink)),
    ".arrow": stream_of,
}


def zst(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


def put(folder, name, rows):
    compression = next((suffix for suffix in PACKERS if suffix and name.endswith(suffix)), "")
    suffix = Path(name.removesuffix(compression)).suffix
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(PACKERS[compression](FORMATS[suffix](rows)))
    return folder / name


def pairs(reference, **reading):
    check_dataset_reference(parse_dataset_reference(str(reference)), RowsConfig(**reading))
    return load_section(str(reference), "dataset.train", RowsConfig(**reading))[0].pairs


def refusal(reference, **reading):
    with pytest.raises(InputError) as caught:
        load_section(str(reference), "dataset.train", RowsConfig(**reading))
    return str(caught.value)


@pytest.mark.parametrize("compression", PACKERS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_and_compression_gives_the_same_pairs(suffix, compression, tmp_path):
    path = put(tmp_path, f"train{suffix}{compression}", ROWS)
    assert pairs(path) == ROWS
    assert pairs(f"{path}#[1:3]") == ROWS[1:3]


def test_an_arrow_file_with_an_index_is_read_too(tmp_path):
    (tmp_path / "train.arrow").write_bytes(stream_of(ROWS, pa.ipc.new_file))
    assert pairs(tmp_path / "train.arrow") == ROWS


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_torn_or_misnamed_compressed_file_is_refused(suffix, compression, tmp_path):
    path = put(tmp_path, f"train{suffix}{compression}", ROWS)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert f"{path}: cannot be read (" in refusal(path)
    path.write_bytes(FORMATS[suffix](ROWS))
    assert f"{path}: cannot be read (" in refusal(path)
    bare = tmp_path / f"bare{suffix}"
    bare.write_bytes(content)
    assert f"{bare}: is no" in refusal(bare)


CELLS = {
    "a line's end in a cell": ('prompt,chosen,rejected\n"a\nb"," x, y"," ""z"""\n', [("a\nb", " x, y", ' "z"')]),
    "texts that look like nothing or numbers": ("prompt,chosen,rejected\nnull,1,NA\n", [("null", "1", "NA")]),
    "a byte-order mark": ("\ufeffprompt,chosen,rejected\na,b,c\n", [("a", "b", "c")]),
    "empty lines": ("prompt,chosen,rejected\n\na,b,c\n\n", [("a", "b", "c")]),
}


@pytest.mark.parametrize(("text", "expected"), CELLS.values(), ids=CELLS.keys())
def test_cells_of_csv_are_the_texts_that_were_written(text, expected, tmp_path):
    (tmp_path / "train.csv").write_bytes(text.encode())
    assert [tuple(pair.values()) for pair in pairs(tmp_path / "train.csv")] == expected


BAD_CSV = {
    "other columns": ("a,b\n1,2\n", "column `chosen` is needed, but is missing or null; the columns given are a, b"),
    "another delimiter": ("prompt;chosen;rejected\na;b;c\n", "separated by commas, not by"),
    "a cell too many": (
        "prompt,chosen,rejected\na,b,c\na,b,c,d\n",
        "row 2 (line 3): has 4 cells, but the header names 3",
    ),
    "an empty cell": ("prompt,chosen,rejected\na,b,\n", "row 1 (line 2): column `rejected` is needed"),
    "a name twice": ("prompt,chosen,chosen\na,b,c\n", "the column 'chosen' is given twice"),
    "an open quote": ('prompt,chosen,rejected\n"a,b,c\n', "is not CSV (unexpected end of data)"),
    "no rows": ("prompt,chosen,rejected\n", "no rows"),
}


@pytest.mark.parametrize(("text", "says"), BAD_CSV.values(), ids=BAD_CSV.keys())
def test_csv_of_other_things_is_refused_by_line(text, says, tmp_path):
    (tmp_path / "train.csv").write_text(text)
    assert says in refusal(tmp_path / "train.csv")


def test_bytes_that_are_no_text_are_a_bad_row_of_their_line(tmp_path):
    content = text_of(ROWS).splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_bytes(b"".join([content[0], b'{"prompt": "\xe9"}\n', *content[1:]]))
    assert "row 2 (line 2): is not UTF-8 text (byte 0xe9 after 12 characters)" in refusal(tmp_path / "train.jsonl")
    assert pairs(tmp_path / "train.jsonl", bad_rows="drop") == ROWS
    assert pairs(f"{tmp_path}/train.jsonl#[2:]") == ROWS[1:]
    cells = csv_of(ROWS).splitlines(keepends=True)
    (tmp_path / "train.csv").write_bytes(b"".join([*cells[:2], b"\xe9,b,c\r\n", *cells[2:]]))
    assert "row 2 (line 3): is not UTF-8 text" in refusal(tmp_path / "train.csv")


@pytest.mark.parametrize("slice_", ["#[1:3]", "#[-3:-1]", "#[1:-1]"])
def test_rows_outside_of_a_slice_do_not_matter(slice_, tmp_path):
    bad = [{"prompt": "x"}, ROWS[0], ROWS[1], {"chosen": 3}]
    for suffix in (".jsonl", ".json"):
        assert pairs(f"{put(tmp_path, f'train{suffix}', bad)}{slice_}") == ROWS[:2]


def test_globs_name_files_in_their_order_and_a_bad_row_by_its_file(tmp_path):
    put(tmp_path, "in/part-2.jsonl.gz", ROWS[2:])
    put(tmp_path, "in/part-1.csv", ROWS[:2])
    (tmp_path / "in" / "part-3.txt").touch()
    assert pairs(f"{tmp_path}/in/part-*") == ROWS == pairs(f"{tmp_path}/**/part-*")
    assert pairs(f"{tmp_path}/in/part-*#[1:3]") == ROWS[1:3]
    put(tmp_path, "in/part-4.jsonl", [*ROWS, {**ROWS[0], "chosen": 1}])
    assert "part-4.jsonl, row 5 (line 5): `chosen` must be a text" in refusal(f"{tmp_path}/in/part-*")
    assert "no file of pairs has such a name" in refusal(f"{tmp_path}/out/*.jsonl")


def test_a_glob_in_a_folder_with_brackets_is_found(tmp_path, monkeypatch):
    put(tmp_path, "run [1]/a.jsonl", ROWS)
    monkeypatch.chdir(tmp_path / "run [1]")
    reference = str(parse_dataset_reference("*.jsonl"))
    monkeypatch.chdir(tmp_path)
    assert pairs(reference) == ROWS == pairs(tmp_path / "run [1]" / "a.jsonl")


def test_a_folder_has_the_splits_of_its_file_names(tmp_path):
    put(tmp_path, "data/train_prefs-00000-of-00002.parquet", ROWS[:2])
    put(tmp_path, "data/train_prefs-00001-of-00002.parquet", ROWS[2:])
    put(tmp_path, "data/test_prefs-00000-of-00001.parquet", ROWS[:1])
    assert pairs(f"{tmp_path}#train_prefs") == ROWS
    assert pairs(f"{tmp_path}#test_prefs") == ROWS[:1]
    assert "its splits are test_prefs, train_prefs" in refusal(tmp_path)
    for name, rows in {"train.jsonl": ROWS, "test.jsonl": ROWS[:1]}.items():
        put(tmp_path / "named", name, rows)
    assert pairs(tmp_path / "named") == ROWS
    assert pairs(f"{tmp_path}/named#test") == ROWS[:1]
    put(tmp_path / "plain.jsonl", "part-0.jsonl", ROWS)
    assert pairs(tmp_path / "plain.jsonl") == ROWS


def test_a_data_set_that_was_saved_is_read_from_its_folder(tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([3])}).save_to_disk(tmp_path / "two")
    assert pairs(tmp_path / "one") == ROWS == pairs(tmp_path / "two")
    assert pairs(f"{tmp_path}/two#test") == ROWS[3:]
    assert "its splits are train, test" in refusal(f"{tmp_path}/two#validation")


@pytest.mark.parametrize("rows", [[{"a": "x", "b": 1, "c": 2.0}], [{"prompt": "x", "b": 1, "c": 2.0}]])
def test_a_table_of_other_columns_lists_them_all(rows, tmp_path):
    for suffix in (".parquet", ".arrow"):
        assert f"the columns given are {', '.join(rows[0])}" in refusal(put(tmp_path, f"train{suffix}", rows))


def test_a_text_column_of_a_table_may_hold_the_prompt(tmp_path):
    rows = [{"question": "Is it?", "chosen": "It is so", "rejected": "It is not", "score": 1}]
    path = put(tmp_path, "train.parquet", rows)
    assert "the prompt may be in question" in refusal(path)
    assert pairs(path, columns={"prompt": "question"})[0]["prompt"] == "Is it?"


def test_csv_is_read_whatever_limit_another_reader_has_set(tmp_path):
    csv.field_size_limit(10)
    assert pairs(put(tmp_path, "train.csv", [{**ROWS[0], "chosen": "x" * 200_000}]))
