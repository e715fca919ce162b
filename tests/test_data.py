"""Preference pairs: what a reference names, which rows are pairs, and the order in which they are trained on."""

import gzip
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from tune_dlrml.config import TrainingConfig
from tune_dlrml.data import (
    DatasetReference,
    check_dataset_reference,
    content_hash,
    load_section,
    parse_dataset_reference,
)
from tune_dlrml.data.plan import batch_plan, training_order
from tune_dlrml.data.readers import _mapping
from tune_dlrml.errors import InputError

PLAIN = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
USER, BLUE, GREEN = (
    {"role": "user", "content": "What color is the sky?"},
    {"role": "assistant", "content": "It is blue."},
    {"role": "assistant", "content": "It is green."},
)
CHAT = {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_jsonl(path, *rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def load_pairs(reference, section="train"):
    return datasets.Dataset.from_list(load_section(str(reference), f"dataset.{section}")[0].pairs)


def pairs_of(path, *rows):
    return list(load_pairs(write_jsonl(path, *rows)))


def refusal(reference, section="train"):
    with pytest.raises(InputError) as caught:
        load_pairs(reference, section)
    return str(caught.value)


# References.


@pytest.mark.parametrize(
    ("text", "kind", "location", "rest"),
    [
        ("pairs/train.jsonl", "file", "{cwd}/pairs/train.jsonl", {}),
        ("/data/train.parquet#[:64]", "file", "/data/train.parquet", {"stop": 64}),
        ("train.json#[-10:]", "file", "{cwd}/train.json", {"start": -10}),
        ("builtin:sentiment_eval", "builtin", "sentiment_eval", {}),
        ("builtin:sentiment_eval#[8:16]", "builtin", "sentiment_eval", {"start": 8, "stop": 16}),
        ("org/name", "hub", "org/name", {}),
        ("org/na-me.v2@main", "hub", "org/na-me.v2", {"revision": "main"}),
        ("org/name@refs/pr/1#test[:1000]", "hub", "org/name", {"revision": "refs/pr/1", "split": "test", "stop": 1000}),
        ("org/name#train_prefs", "hub", "org/name", {"split": "train_prefs"}),
    ],
)
def test_a_reference_is_read_as_what_it_names(text, kind, location, rest, folder):
    expected = DatasetReference(kind, location.format(cwd=folder), **rest)
    assert parse_dataset_reference(text) == expected
    assert parse_dataset_reference(str(expected)) == expected


def test_a_file_stays_the_same_file_in_another_working_directory(folder, monkeypatch):
    reference = str(parse_dataset_reference("train.jsonl#[:2]"))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert str(parse_dataset_reference(reference)) == reference == f"{folder}/train.jsonl#[:2]"


@pytest.mark.parametrize(
    "text", ["name", "train.txt", "a/b/c", "org/name#a b", "a.jsonl#[1]", "a.jsonl#[::2]", "#x", ""]
)
def test_a_text_that_is_no_reference_is_refused_with_the_legal_forms(text, folder):
    with pytest.raises(InputError, match=r"is not a reference to a data set: .*builtin:<name>.*org/name.*#split"):
        parse_dataset_reference(text)


def test_a_file_of_another_kind_is_not_a_hub_id(folder):
    (folder / "pairs").mkdir()
    write_jsonl(folder / "pairs" / "train.jsonl", PLAIN)
    (folder / "pairs" / "train.txt").touch()
    with pytest.raises(InputError, match=r"is not a reference to a data set: .*builtin"):
        parse_dataset_reference("pairs/train.txt")


# What loads.


def test_plain_pairs_load_as_they_are_without_their_other_columns(folder):
    dataset = load_pairs(write_jsonl(folder / "train.jsonl", {**PLAIN, "score": 3}))
    assert dataset.column_names == ["prompt", "chosen", "rejected"]
    assert list(dataset) == [PLAIN]


def test_conversational_pairs_keep_role_and_content_of_each_message(folder):
    row = {**CHAT, "prompt": [{**USER, "name": "Ada"}]}
    assert pairs_of(folder / "train.jsonl", row) == [CHAT]


TOOLS = [{"type": "function", "function": {"name": "look"}}]
CALL = {**BLUE, "tool_calls": [{"function": {"name": "look"}}]}


def notes_of(reference):
    return load_section(str(reference), "dataset.train")[1]


def test_rows_with_unused_fields_are_counted_and_reported(folder):
    rows = [CHAT, {**CHAT, "tools": TOOLS}, {**CHAT, "chosen": [CALL], "tools": None}]
    reference = write_jsonl(folder / "train.jsonl", *rows)
    assert notes_of(reference) == (
        "dataset.train: 2 of 3 rows have unused fields: tools, tool_calls (first: row 2 (line 2))",
    )
    assert notes_of(f"{reference}#[:1]") == ()


def test_unread_columns_of_a_table_are_reported(folder):
    rows = [{**CHAT, "chosen": [{**BLUE, "name": None}], "tools": "look", "id": 1}] * 2
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    (note,) = notes_of("train.parquet")
    assert note == "dataset.train: 2 of 2 rows have unused fields: tools, id (first: row 1)"


def test_of_many_fields_that_are_not_used_the_first_are_named_and_fit_to_be_shown(folder):
    row = {**PLAIN, "a\nb": 1, "\ud800": 1, "x" * 1000: 1, **{f"f{number}": 1 for number in range(100)}}
    (note,) = notes_of(write_jsonl(folder / "train.jsonl", row))
    assert len(note) < 300 and "\n" not in note and note.encode()
    assert note.endswith("f0, f1, f2, f3, f4, and 95 more (first: row 1 (line 1))")


def test_turns_that_differ_in_a_field_that_is_not_used_are_refused_with_its_name(folder):
    message = refusal(write_jsonl(folder / "train.jsonl", {**CHAT, "chosen": [CALL], "rejected": [BLUE]}))
    assert (
        "`chosen` and `rejected` must differ in role or content (other fields are not compared: tool_calls), but both"
        in message
    )


IMPLICIT = {
    "conversations": ({"chosen": [USER, BLUE], "rejected": [USER, GREEN]}, CHAT),
    "prompt repeated as a text": (
        {"prompt": "What color is the\nsky?", "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
        CHAT,
    ),
    "a longer answer to the same start": (
        {"chosen": [USER, BLUE], "rejected": [USER, BLUE, USER, GREEN]},
        {"prompt": [USER], "chosen": [BLUE], "rejected": [BLUE, USER, GREEN]},
    ),
    "texts": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    ),
    "texts that part inside a word": (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " black."},
    ),
    "a text that continues the other": (
        {"chosen": "The sky", "rejected": "The sky is"},
        {"prompt": "The", "chosen": " sky", "rejected": " sky is"},
    ),
}


@pytest.mark.parametrize(("row", "pair"), IMPLICIT.values(), ids=IMPLICIT.keys())
def test_a_shared_start_becomes_the_prompt(row, pair, folder):
    assert pairs_of(folder / "train.jsonl", row) == [pair]


def test_the_prompt_is_the_one_that_trl_extracts_but_for_letters_of_a_word_that_is_not_whole():
    from trl.data_utils import extract_prompt

    for row, pair in IMPLICIT.values():
        theirs = extract_prompt(row)
        for column in ("chosen", "rejected"):
            assert theirs["prompt"] + theirs[column] == pair["prompt"] + pair[column]
        cut = theirs["prompt"][len(pair["prompt"]) :]
        assert theirs["prompt"][: len(pair["prompt"])] == pair["prompt"] and cut in ([], "", " bl", " sk")


def test_every_file_format_gives_the_same_pairs(folder):
    rows = [CHAT, {**CHAT, "chosen": [{"role": "assistant", "content": "Blue, mostly."}]}]
    (folder / "array.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    write_jsonl(folder / "lines.json", *rows)
    text = "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "windows.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**row, "id": 1} for row in rows]), folder / "table.parquet")
    for name in ("array.json", "lines.json", "windows.jsonl", "table.parquet"):
        check_dataset_reference(parse_dataset_reference(name))
        assert list(load_pairs(name)) == rows


def test_a_line_separator_inside_a_text_does_not_end_the_line(folder):
    row = {**PLAIN, "chosen": " blue\u2028and\x85grey."}
    (folder / "train.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert list(load_pairs("train.jsonl")) == [row]


@pytest.mark.parametrize(
    ("selection", "numbers"),
    [("#[:2]", [0, 1]), ("#[3:]", [3, 4]), ("#[-1:]", [4]), ("#train[1:3]", [1, 2]), ("#[:]", [*range(5)])],
)
def test_a_slice_takes_the_rows_that_python_would(selection, numbers, folder):
    rows = [{**PLAIN, "prompt": str(number)} for number in range(5)]
    dataset = load_pairs(write_jsonl(folder / "train.jsonl", *rows) + selection)
    assert [int(prompt) for prompt in dataset["prompt"]] == numbers


def test_a_bad_row_outside_the_slice_does_no_harm(folder):
    reference = write_jsonl(folder / "train.jsonl", PLAIN, "no row")
    assert len(load_pairs(f"{reference}#[:1]")) == 1


# What is refused.

BAD_ROWS = {
    "no mapping": ("pair", ["must be a mapping with the columns prompt, chosen, rejected", '"pair"']),
    "missing column": ({"prompt": "a", "chosen": "b"}, ["column `rejected` is needed", "prompt, chosen"]),
    "null": ({**PLAIN, "chosen": None}, ["column `chosen` is needed", "null"]),
    "number": ({**PLAIN, "rejected": 7}, ["`rejected` must be a text or a list of messages", "got 7"]),
    "mapping": ({**PLAIN, "chosen": {"a": 1}}, ["`chosen` must be a text or a list of messages", '{"a": 1}']),
    "message without role": ({**CHAT, "chosen": [{"content": "x"}]}, ["each message of `chosen`", '{"content": "x"}']),
    "message of parts": ({**CHAT, "chosen": [{"role": "user", "content": []}]}, ["content: text", '"content": []']),
    "text among messages": ({**CHAT, "chosen": ["x"]}, ["each message of `chosen`", '"x"']),
    "empty text": ({**PLAIN, "chosen": " \n"}, ["`chosen` must not be empty", '" \\n"']),
    "empty prompt": ({**PLAIN, "prompt": ""}, ["`prompt` must not be empty", '""']),
    "no messages": ({**CHAT, "rejected": []}, ["`rejected` must not be empty", "[]"]),
    "empty message": ({**CHAT, "chosen": [{**BLUE, "content": ""}]}, ["`chosen` must not be empty", '"content": ""']),
    "equal texts": ({**PLAIN, "rejected": " blue."}, ["`chosen` and `rejected` must differ", '" blue."']),
    "equal messages": ({**CHAT, "rejected": [BLUE]}, ["`chosen` and `rejected` must differ", "It is blue."]),
    "two formats": ({**PLAIN, "rejected": [GREEN]}, ["`chosen` is a text, but `rejected` is a list of messages"]),
    "prompt in another format": (
        {**PLAIN, "prompt": [USER]},
        ["`prompt` is a list of messages, but `chosen` is a text"],
    ),
    "text prompt of messages": (
        {**CHAT, "prompt": "What?"},
        ["`prompt` is a text, but `chosen` is a list of messages"],
    ),
    "half a surrogate pair": ({**PLAIN, "chosen": "a\ud800"}, ["`chosen` must be Unicode text", "character 1"]),
}


@pytest.mark.parametrize(("row", "says"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_reported_by_file_row_line_column_and_value(row, says, folder):
    good = CHAT if isinstance(row, dict) and isinstance(row.get("chosen"), list) else PLAIN
    reference = write_jsonl(folder / "train.jsonl", good, row)
    message = refusal(reference, section="eval")
    assert message.startswith(f"dataset.eval: {reference}: row 2 (line 2): ")
    for text in says:
        assert text in message
    with pytest.raises(InputError, match="row 2"):
        check_dataset_reference(parse_dataset_reference(reference))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"chosen": "blue", "rejected": "green"}, "`prompt` is missing, and `chosen` and `rejected` share no start"),
        ({"chosen": [BLUE], "rejected": [GREEN]}, "`prompt` is missing, and `chosen` and `rejected` share no start"),
        ({"chosen": [USER, {**BLUE, "content": ""}], "rejected": [USER, GREEN]}, "`chosen` must not be empty after"),
    ],
)
def test_a_shared_start_must_leave_a_prompt_and_two_completions(row, says, folder):
    assert says in refusal(write_jsonl(folder / "train.jsonl", row))


def test_a_row_without_the_prompt_that_others_give_is_refused(folder):
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    assert "row 2 (line 2): column `prompt` is needed" in refusal(write_jsonl(folder / "train.jsonl", PLAIN, row))


def test_all_rows_of_a_data_set_have_one_format(folder):
    message = refusal(write_jsonl(folder / "train.jsonl", PLAIN, CHAT))
    assert "row 2 (line 2): `chosen` is a list of messages, but that of the rows before is a text" in message


def test_of_many_bad_rows_the_message_counts_all_and_shows_three(folder):
    message = refusal(write_jsonl(folder / "train.jsonl", PLAIN, *[{**PLAIN, "chosen": number} for number in range(5)]))
    head, *shown, rest, remedy = message.splitlines()
    assert head.endswith("train.jsonl: 5 of 6 rows are not preference pairs:")
    assert [line.strip()[:14] for line in shown] == ["row 2 (line 2)", "row 3 (line 3)", "row 4 (line 4)"]
    assert rest == "  and 2 more"
    assert remedy == "Set dataset.bad_rows: drop to leave such rows out."


def test_a_long_value_is_shortened(folder):
    assert len(refusal(write_jsonl(folder / "train.jsonl", "x" * 10_000))) < 400


def test_a_line_that_is_no_json_is_reported_by_its_number(folder):
    path = folder / "train.jsonl"
    path.write_text(f'{json.dumps(PLAIN)}\n\n{{"prompt": "a",}}\n{json.dumps(PLAIN)}\n', encoding="utf-8")
    message = refusal(path)
    assert "train.jsonl: row 2 (line 3): is not JSON (" in message
    assert "column 16" in message


@pytest.mark.parametrize("text", ["[" * 100_000, f"[{'1' * 5000}]", '[{"prompt": "a"\n'])
def test_an_array_that_is_no_json_is_refused(text, folder):
    (folder / "train.json").write_text(text, encoding="utf-8")
    assert "train.json: " in refusal("train.json")


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_an_empty_data_set_is_refused(content, folder):
    (folder / "train.json").write_text(content, encoding="utf-8")
    assert refusal("train.json").endswith("train.json: no rows; at least one preference pair is needed.")


def test_a_slice_of_no_rows_is_refused(folder):
    assert "#[5:]: no rows" in refusal(write_jsonl(folder / "train.jsonl", PLAIN) + "#[5:]")


def test_a_missing_file_is_answered_with_the_nearest_beside_it(folder):
    write_jsonl(folder / "train.jsonl", PLAIN)
    assert refusal("trian.jsonl").endswith(f"there is no such file. Did you mean {folder}/train.jsonl?")
    assert refusal("nowhere/train.jsonl").endswith("nowhere/train.jsonl: there is no such file.")


def test_a_file_has_no_named_split(folder):
    assert "a file has no split 'test'" in refusal(write_jsonl(folder / "train.jsonl", PLAIN) + "#test")


def test_an_unknown_builtin_set_is_answered_with_those_there_are():
    assert "sentiment_train, sentiment_eval" in refusal("builtin:sentiments")


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
def test_a_file_of_bytes_is_refused(name, folder):
    (folder / name).write_bytes(b"\xff\xfe\x00PAR")
    assert f"{name}: is no" in refusal(name)


def test_a_text_of_more_than_a_million_characters_is_a_bad_row(folder):
    rows = [{**PLAIN, "chosen": "x" * 1_000_000}, {**PLAIN, "rejected": "x" * 1_000_001}]
    message = refusal(write_jsonl(folder / "train.jsonl", *rows))
    assert "row 2 (line 2): a text of `rejected` must have at most 1,000,000 characters, but has 1,000,001" in message


def test_a_key_that_is_given_twice_is_a_bad_row(folder):
    (folder / "train.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c", "chosen": "d"}\n')
    assert 'row 1 (line 1): cannot be read as JSON (the key "chosen" is given twice; keep one)' in refusal(
        "train.jsonl"
    )


def test_a_key_that_is_given_twice_is_found_in_one_pass_over_a_long_line():
    class Key(str):
        compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other):
            Key.compared += 1
            return str.__eq__(self, other)

    keys = [Key(f"key {number}") for number in range(2000)]
    with pytest.raises(ValueError, match='the key "key 1999" is given twice'):
        _mapping([(key, None) for key in [*keys, Key("key 1999")]])
    assert Key.compared < 10 * len(keys)


def test_a_line_without_end_is_not_read_to_its_end(folder, monkeypatch):
    monkeypatch.setattr("tune_dlrml.data.readers.LINE_LIMIT", 1000)
    (folder / "train.jsonl").write_text(f"{json.dumps(PLAIN)}\n{'x' * 1001}")
    assert "train.jsonl: line 2: a line has at most 1,000 characters" in refusal("train.jsonl")


def test_an_array_is_read_up_to_its_own_limit(folder, monkeypatch):
    monkeypatch.setattr("tune_dlrml.data.readers.LINE_LIMIT", 100)
    monkeypatch.setattr("tune_dlrml.data.readers.ARRAY_LIMIT", 1000)
    (folder / "short.json").write_text(json.dumps([PLAIN] * 10))
    (folder / "long.json").write_text(json.dumps([PLAIN] * 20))
    assert len(load_pairs("short.json")) == 10
    assert "long.json: an array has at most 1,000 characters" in refusal("long.json")


def test_characters_that_other_programs_stop_at_are_part_of_a_text(folder):
    row = {**PLAIN, "chosen": " blue\0\x1a\u2028\ufeff"}
    assert pairs_of(folder / "train.jsonl", row) == [row]


def loop(path):
    path.symlink_to(path.name)


PATHS = {
    "folder": (Path.mkdir, "the folder holds no file of pairs"),
    "pipe": (os.mkfifo, "must be a file, but is a pipe, a socket or a device"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "must be a file, but is a pipe, a socket or a device"),
    "links in a circle": (loop, "cannot be read (Too many levels of symbolic links)"),
    "link to nothing": (lambda path: path.symlink_to("nowhere.jsonl"), "nowhere.jsonl: there is no such file"),
}


@pytest.mark.parametrize(("make", "says"), PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_path_that_is_no_file_is_refused_without_waiting(suffix, make, says, folder):
    make(folder / f"train{suffix}")
    assert says in refusal(f"train{suffix}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_refused(folder):
    Path(write_jsonl(folder / "train.jsonl", PLAIN)).chmod(0)
    assert "train.jsonl: cannot be read (Permission denied)" in refusal("train.jsonl")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gzip.compress(json.dumps(PLAIN).encode()), "is not UTF-8 text but compressed (.gz); give the file the name"),
        (json.dumps(PLAIN).encode("utf-16"), "is not UTF-8 text but UTF-16; write it as UTF-8"),
        (b"\0" * 1000, "is not JSON"),
        (b"PK\x03\x04...", "but an archive (.zip); unpack it."),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
            "a pointer of Git LFS; `git lfs pull`",
        ),
        (b"<!DOCTYPE html>\n<html></html>", "but a web page; download the file itself."),
        (json.dumps(PLAIN, indent=2).encode(), "line 1: an object goes over several lines; write one a line"),
        (json.dumps({"data": [PLAIN]}, indent=2).encode(), "line 1: an object goes over several lines"),
        (
            '{"prompt": "caf\xe9"}\n'.encode("latin-1"),
            "not UTF-8 text (byte 0xe9 after 15 characters); write the file as",
        ),
    ],
    ids=["compressed", "UTF-16", "zeros", "zip", "LFS", "HTML", "pretty", "wrapped", "latin"],
)
def test_a_file_of_another_kind_is_refused(content, says, folder):
    (folder / "train.jsonl").write_bytes(content)
    assert says in refusal("train.jsonl")


def test_a_table_that_is_a_pointer_says_so(folder):
    (folder / "train.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    assert refusal("train.parquet").endswith(
        "is not a table but a pointer of Git LFS; `git lfs pull` fetches the file."
    )


CELLS = {
    "quotes, commas and lines": (
        ".csv",
        'prompt,chosen,rejected\r\n"a, ""b""\nc",d,e\r\n',
        {"prompt": 'a, "b"\nc', "chosen": "d", "rejected": "e"},
    ),
    "a mark of byte order": (
        ".csv",
        "\ufeffprompt,chosen,rejected\na,b,c\n",
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ),
    "an index": (".csv", ",prompt,chosen,rejected\n0,a,b,c\n", {"prompt": "a", "chosen": "b", "rejected": "c"}),
    "texts that others take for nothing": (
        ".csv",
        "prompt,chosen,rejected\nNA,null,nan\n",
        {"prompt": "NA", "chosen": "null", "rejected": "nan"},
    ),
    "spaces": (".csv", "prompt,chosen,rejected\na, b,c \n", {"prompt": "a", "chosen": " b", "rejected": "c "}),
    "an inch": (
        ".tsv",
        'prompt\tchosen\trejected\na\t5" b\tc, d\n',
        {"prompt": "a", "chosen": '5" b', "rejected": "c, d"},
    ),
    "numbers beside transcripts": (
        ".csv",
        ",chosen,rejected,score\n0,Say: b,Say: c,3.5\n",
        {"prompt": "Say:", "chosen": " b", "rejected": " c"},
    ),
}


@pytest.mark.parametrize(("suffix", "text", "pair"), CELLS.values(), ids=CELLS.keys())
def test_cells_are_read_as_they_were_written(suffix, text, pair, folder):
    (folder / f"train{suffix}").write_bytes(text.encode())
    assert list(load_pairs(f"train{suffix}")) == [pair]


NO_CELLS = {
    "semicolons": (".csv", "prompt;chosen;rejected\na;b;c\n", "separated by commas, not by ';'"),
    "tabs": (".csv", "prompt\tchosen\trejected\na\tb\tc\n", r"separated by commas, not by '\t'"),
    "commas": (".tsv", "prompt,chosen,rejected\na,b,c\n", "separated by tabs, not by ','"),
    "backslashes": (".csv", 'prompt,chosen,rejected\na,"say \\"x\\"",c\n', "line 2: is not CSV ("),
    "an open quote": (
        ".csv",
        'prompt,chosen,rejected\n"a,b,c\nd,e,f\n',
        "is not CSV (unexpected end of data); a cell that",
    ),
    "a cell too few": (".csv", "prompt,chosen,rejected\na,b\n", "has 2 cells, but the header names 3 columns"),
    "no header": (".csv", "a,b,c\nd,e,f\n", "the columns given are a, b, c (dataset.columns"),
    "an empty cell": (".csv", "prompt,chosen,rejected\na,,c\n", "column `chosen` is needed, but is missing or null"),
    "latin letters": (
        ".csv",
        "prompt,chosen,rejected\na,b\udce9,c\n",
        "not UTF-8 text (byte 0xe9 after 2 characters)",
    ),
}


@pytest.mark.parametrize(("suffix", "text", "says"), NO_CELLS.values(), ids=NO_CELLS.keys())
def test_cells_that_are_written_otherwise_are_refused(suffix, text, says, folder):
    (folder / f"train{suffix}").write_bytes(text.encode(errors="surrogateescape"))
    message = refusal(f"train{suffix}")
    assert says in message and len(message) < 500


def test_lines_that_are_empty_are_passed_over(folder):
    (folder / "array.json").write_text(f"\n\n{json.dumps([PLAIN], indent=1)}\n\n", encoding="utf-8")
    (folder / "lines.jsonl").write_text(f"\n{json.dumps(PLAIN)}\r\n \n\n", encoding="utf-8")
    assert list(load_pairs("array.json")) == list(load_pairs("lines.jsonl")) == [PLAIN]
    (folder / "lines.jsonl").write_text(f"\n\n{json.dumps(PLAIN)}\n[1\n", encoding="utf-8")
    assert "row 2 (line 4): is not JSON" in refusal("lines.jsonl")


@pytest.mark.parametrize("scheme", ["https://host/", "s3://bucket/", "hf://datasets/", "file:///"])
def test_a_url_is_no_file(scheme, folder):
    assert f"'{scheme}a/b.jsonl' is a URL; download it and name the file" in refusal(f"{scheme}a/b.jsonl")


def test_a_slice_without_its_sign_is_refused_with_it(folder):
    reference = write_jsonl(folder / "train.jsonl", PLAIN)
    assert refusal(f"{reference}[:1]").endswith("`#[:64]` selects rows.")


PARQUET = {
    "no rows": ([], "no rows; at least one preference pair is needed"),
    "numbers": (
        [{"prompt": 1, "chosen": 2, "rejected": 3}],
        "`chosen` must be a text or a list of messages, but got 2",
    ),
    "bytes": ([{**PLAIN, "chosen": b"x"}], "`chosen` must be a text or a list of messages"),
    "null": ([{**PLAIN, "chosen": None}], "column `chosen` is needed, but is missing or null"),
    "other columns": ([{"text": "a"}], "column `chosen` is needed"),
    "nested lists": ([{"prompt": "a", "chosen": [["b"]], "rejected": [["c"]]}], "each message of `chosen` must be"),
}


@pytest.mark.parametrize(("rows", "says"), PARQUET.values(), ids=PARQUET.keys())
def test_parquet_of_other_things_is_refused(rows, says, folder):
    table = pyarrow.Table.from_pylist(rows, schema=None if rows else pyarrow.schema([("prompt", pyarrow.string())]))
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    assert says in refusal("train.parquet")


# Hubs. No test reaches one: what it would answer is put in place of the client's functions.


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that knows org/name, with an empty cache; loading and asking are recorded."""
    calls = []

    def dataset_info(repo_id, *, revision=None, timeout=None):
        assert timeout is not None and timeout <= 5
        calls.append(("ask", repo_id, revision))
        if repo_id != "org/name":
            raise huggingface_hub.errors.RepositoryNotFoundError(
                "404", response=SimpleNamespace(headers={}, request=None)
            )
        if revision not in (None, "v1"):
            raise huggingface_hub.errors.RevisionNotFoundError(
                "404", response=SimpleNamespace(headers={}, request=None)
            )

    def load_dataset(path, *, revision=None, split=None):
        calls.append(("load", path, revision, split))
        if split not in ("train", "test"):
            raise ValueError(f"Unknown split \"{split}\". Should be one of ['train', 'test'].")
        rows = [
            {"chosen": [{**USER, "content": str(n)}, BLUE], "rejected": [{**USER, "content": str(n)}, GREEN]}
            for n in range(5)
        ]
        return datasets.Dataset.from_list([{**row, "rating": 5} for row in rows])

    monkeypatch.setattr(huggingface_hub, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    return calls


def test_a_hub_data_set_loads_its_train_split_with_the_prompt_made_explicit(hub):
    dataset = load_pairs("org/name")
    assert hub == [("ask", "org/name", None), ("load", "org/name", None, "train")]
    assert dataset.column_names == ["prompt", "chosen", "rejected"]
    assert notes_of("org/name") == ("dataset.train: 5 of 5 rows have unused fields: rating (first: row 1)",)
    assert dataset[3] == {"prompt": [{"role": "user", "content": "3"}], "chosen": [BLUE], "rejected": [GREEN]}


def test_revision_split_and_slice_reach_the_hub_data_set(hub):
    dataset = load_pairs("org/name@v1#test[1:3]", section="eval")
    assert hub[-1] == ("load", "org/name", "v1", "test")
    assert [prompt[0]["content"] for prompt in dataset["prompt"]] == ["1", "2"]


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("org/nome", "no such data set exists"),
        ("org/name@v2", "has no revision 'v2'"),
        ("org/name#validation", "Should be one of ['train', 'test']"),
    ],
)
def test_what_the_hub_does_not_have_is_reported_with_its_answer(reference, says, hub):
    message = refusal(reference)
    assert message.startswith(f"dataset.train: {reference}: ")
    assert says in message


def test_a_cached_hub_data_set_is_not_asked_for(hub, tmp_path):
    (tmp_path / "home" / "hub" / "datasets--org--other" / "snapshots" / "abc").mkdir(parents=True)
    check_dataset_reference(parse_dataset_reference("org/other"))
    (tmp_path / "home" / "datasets" / "org___third" / "default").mkdir(parents=True)
    check_dataset_reference(parse_dataset_reference("org/third"))
    assert hub == []


def test_without_a_network_the_message_names_the_file_that_may_be_meant(hub, folder, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "dataset_info", unreachable)
    (folder / "pairs").mkdir()
    write_jsonl(folder / "pairs" / "train.jsonl", PLAIN)
    message = refusal("pairs/train")
    assert "the hub cannot be reached (OSError: Name or service not known)" in message
    assert "Did you mean pairs/train.jsonl?" in message


def test_a_hub_that_does_not_answer_is_given_up_on(hub, monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(huggingface_hub, "dataset_info", lambda *args, **kwargs: answered.wait(60))
    monkeypatch.setattr("tune_dlrml.system.hub.HUB_DEADLINE_S", 0.1)
    started = time.monotonic()
    assert "no answer in 0.1 s" in refusal("org/name")
    assert time.monotonic() - started < 5
    answered.set()


# Checking without loading.


def test_a_check_reads_the_first_rows_only(folder):
    rows = [PLAIN] * 50
    reference = parse_dataset_reference(write_jsonl(folder / "train.jsonl", *rows, "no row"))
    check_dataset_reference(reference)
    assert "row 51" in refusal(str(reference))


def test_a_check_of_a_file_imports_neither_datasets_nor_torch(folder):
    write_jsonl(folder / "train.jsonl", PLAIN)
    program = (
        "import sys; from tune_dlrml.data import *; check_dataset_reference(parse_dataset_reference('train.jsonl'));"
        "print([name for name in ('datasets', 'torch', 'huggingface_hub') if name in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# Identity, overlap and order.


def test_the_content_hash_depends_on_rows_and_their_order_only(folder):
    other = {**PLAIN, "prompt": "The sea is"}
    hashes = [
        content_hash(load_pairs(write_jsonl(folder / name, *rows)))
        for name, rows in {
            "a.jsonl": [PLAIN, other],
            "b.json": [dict(reversed(PLAIN.items())), {**other, "score": 1}],
            "c.jsonl": [other, PLAIN],
            "d.jsonl": [PLAIN],
        }.items()
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert hashes[3] == sha256(b'{"chosen":" blue.","prompt":"The sky is","rejected":" green."}\n').hexdigest()


def test_a_plan_visits_every_row_once_an_epoch_in_a_new_order():
    plan = batch_plan([9] * 10, steps=5, pairs_per_step=4, seed=0)
    epochs = plan[:10], plan[10:]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1] != list(range(10))


def test_no_row_comes_twice_in_a_step_within_an_epoch():
    plan = batch_plan([5, 5, 5, 9, 9, 9, 1, 2], steps=30, pairs_per_step=4, seed=0)
    assert all(len(set(plan[start : start + 4])) == 4 for start in range(0, 120, 4))


def test_a_shorter_plan_is_the_start_of_a_longer_one():
    lengths = [30, 10, 20, 40, 15, 25, 5]
    longer = batch_plan(lengths, steps=40, pairs_per_step=4, seed=3)
    for steps in (1, 5, 16, 17, 39):
        assert batch_plan(lengths, steps=steps, pairs_per_step=4, seed=3) == longer[: 4 * steps]


def test_a_plan_depends_on_its_seed():
    lengths = list(range(50))
    assert batch_plan(lengths, steps=5, pairs_per_step=10, seed=0) != batch_plan(
        lengths, steps=5, pairs_per_step=10, seed=1
    )


def test_fewer_rows_than_a_step_needs_are_repeated_evenly():
    plan = batch_plan([7, 8, 9], steps=2, pairs_per_step=8, seed=0)
    assert len(plan) == 16
    assert set(Counter(plan).values()) == {5, 6}


def test_the_pairs_of_a_step_are_alike_in_length_the_longest_first_and_steps_come_in_no_order():
    lengths = random.Random(0).sample(range(1000), 64)
    plan = batch_plan(lengths, steps=16, pairs_per_step=4, seed=0)
    assert sorted(plan) == list(range(64))
    steps = [[lengths[row] for row in plan[start : start + 4]] for start in range(0, 64, 4)]
    longest_first = sorted(lengths, reverse=True)
    assert sorted(steps, reverse=True) == [longest_first[start : start + 4] for start in range(0, 64, 4)]
    assert steps != sorted(steps, reverse=True) != steps[::-1]


def test_a_random_order_keeps_each_epochs_permutation_and_groups_nothing():
    lengths = random.Random(1).sample(range(1000), 64)
    plan = batch_plan(lengths, steps=32, pairs_per_step=4, seed=0, by_length=False)
    assert [sorted(plan[:64]), sorted(plan[64:])] == [list(range(64))] * 2
    permutation = list(range(64))
    random.Random("0-0").shuffle(permutation)
    assert plan[:64] == permutation
    assert batch_plan([1] * 64, steps=32, pairs_per_step=4, seed=0, by_length=False) == plan


def test_a_trials_order_follows_its_own_seed_of_the_data_where_it_has_one():
    lengths = random.Random(2).choices(range(1, 1000), k=100)

    def order(**training):
        config = TrainingConfig(max_steps=10, per_device_train_batch_size=2, max_length=500, **training)
        return training_order(lengths, config, steps=10, workers=2)

    assert len(order()) == 40
    assert order(seed=3) == order(seed=8, data_seed=3) != order(seed=8)
    assert order(seed=3) != order(seed=3, train_sampling_strategy="random")
    clipped = [min(length, 500) for length in lengths]
    assert order(seed=3) == batch_plan(clipped, steps=10, pairs_per_step=4, seed=3)


def test_a_plan_is_the_same_on_every_machine():
    assert batch_plan([3, 1, 2, 2, 5, 4], steps=3, pairs_per_step=4, seed=0) == [5, 0, 3, 1, 4, 2, 4, 3, 5, 0, 2, 1]


def test_a_plan_over_no_rows_is_refused():
    with pytest.raises(ValueError, match="`rows >= 1` must hold"):
        batch_plan([], steps=1, pairs_per_step=1, seed=0)
