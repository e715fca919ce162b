"""Where the words of a search and of its libraries go."""

import io
import os

import pytest
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tune_dlrml.system.streams import LastingStream, noise_to, reading_console


@pytest.fixture
def pipe():
    """A pipe without its reader."""
    reader, writer = os.pipe()
    os.close(reader)
    return LastingStream(os.fdopen(writer, "wb"), encoding="utf-8", line_buffering=True)


def test_a_search_continues_without_a_reader_of_its_output(pipe, caplog):
    with pipe:
        console = Console(file=pipe, width=80)
        for line in range(3):
            console.print(f"trial {line}")
        assert not console.quiet, "the console gave up by itself, as it does before it ends the process"
    assert [record.message for record in caplog.records] == [
        "the search's output has no reader any more (Broken pipe); the search continues"
    ]


def test_libraries_write_into_the_file_and_the_search_to_where_people_read(tmp_path, capfd):
    with noise_to(tmp_path / "log", os.fdopen(os.dup(1), "w")) as stream:
        os.system("echo a library")
        stream.write("the search\n")
    os.system("echo afterwards")
    assert capfd.readouterr().out == "the search\nafterwards\n"
    assert (tmp_path / "log").read_text() == "a library\n"


@pytest.mark.parametrize("name", ["openai:m:", ":smile: and :m:", "local:a:x:logits", "runs/:100:"])
def test_a_name_between_colons_is_no_emoji(name):
    table = Table("judge")
    table.add_row(escape(name))
    stream = io.StringIO()
    console = reading_console(stream, width=80)
    console.print(f"[bold]{escape(name)}[/]", highlight=False)
    console.print(table)
    console.print(name, markup=False)
    assert stream.getvalue().count(name) == 3
