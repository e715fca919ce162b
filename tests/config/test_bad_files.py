"""A file that is no plain YAML mapping is refused before its values are looked at."""

import os
import pickle
import time

import pytest

from tune_dlrml.config import load_config
from tune_dlrml.errors import InputError

EDITS = {
    "repeated key": (lambda d: d + "model: b\n", ":33: model: the key is given twice"),
    "repeated nested key": (lambda d: d.replace("bf16: false", "max_steps: 9"), ":10: training.max_steps: the key is"),
    "tag that runs code": (lambda d: d.replace("org/model", "!!python/name:os.getcwd"), ":2: model: a plain value is"),
    "tag of one's own": (lambda d: d.replace("max_steps: 40", "max_steps: !n 4"), ":7: training.max_steps: a plain"),
    "tag that retypes": (lambda d: d.replace("max_steps: 40", "max_steps: !!int forty"), "the YAML tag !!int"),
    "key that is a number": (lambda d: "5: x\n" + d, ":1: top level: a key must be text, but got 5"),
    "key that is a list": (lambda d: "? [a, b]\n: x\n" + d, ":1: top level: a key must be text, but got a sequence"),
    "key that is a boolean": (lambda d: d.replace("bf16: false", "on: false"), ":10: training: a key must be text"),
    "no YAML": (lambda d: d + "search: [1, 2\n", ": is not YAML: expected ',' or ']'"),
    "tab as indent": (lambda d: d.replace("  window", "\twindow"), ":28: is not YAML: found character"),
    "control character": (lambda d: d.replace("demo", "de\0mo"), "is not YAML: unacceptable character #x0000"),
    "two documents": (lambda d: d + "---\nname: b\n", ":33: is not YAML: but found another document"),
    "list at the top": (lambda d: "- name: demo\n", "must hold a mapping of keys such as name, model"),
    "only text": (lambda d: "name", "must hold a mapping of keys such as name, model"),
    "empty file": (lambda d: "", "must hold a mapping of keys such as name, model"),
    "alias that holds itself": (lambda d: d.replace("org/model", "&m [*m]"), "nested too deeply, or without end"),
    "deep nesting": (lambda d: d.replace("org/model", "[" * 1000), "nested too deeply"),
    "undefined alias": (lambda d: d.replace("org/model", "*m"), ":2: is not YAML: found undefined alias"),
}


@pytest.mark.parametrize(("edit", "says"), EDITS.values(), ids=EDITS.keys())
def test_a_file_that_is_no_plain_mapping_is_refused(edit, says, document, refusal):
    message = refusal(edit(document))
    assert message.startswith("search.yaml:")
    assert says in message


def test_aliases_that_multiply_are_refused_before_they_are_written_out(refusal):
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    started = time.monotonic()
    message = refusal("\n".join(["a0: &a0 [1]", *levels]))
    assert "more than 20000 values once the aliases are written out" in message
    assert time.monotonic() - started < 5


def test_a_file_of_more_than_a_megabyte_is_not_read(document, refusal):
    assert "at most 1000000 bytes" in refusal(document + "#" * 1_000_000)


def test_a_file_that_is_not_utf8_says_at_which_byte(tmp_path):
    path = tmp_path / "search.yaml"
    path.write_bytes(b"name: d\xe9mo\n")
    with pytest.raises(InputError, match=r"search\.yaml: is not UTF-8 text \(byte 7\)"):
        load_config(path)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_path_that_is_no_file_is_refused_with_its_name(name, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path / name)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_what_is_no_file_is_refused_without_waiting_for_its_end(make, tmp_path):
    make(tmp_path / "search.yaml")
    with pytest.raises(InputError, match=r"search\.yaml: a search-space file must be a file"):
        load_config(tmp_path / "search.yaml")


@pytest.mark.parametrize("key", ["name", "model", "dataset", "training"])
def test_a_section_that_must_be_given_is_named(key, document, refusal):
    lines = document.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"{key}:"))
    end = next(index for index in range(start + 1, len(lines)) if not lines[index].startswith(" "))
    message = refusal("\n".join(lines[:start] + lines[end:]))
    assert message == f"search.yaml: {key}: must be given, but is missing"


def test_the_error_survives_pickling(load):
    with pytest.raises(InputError) as caught:
        load("- a")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
