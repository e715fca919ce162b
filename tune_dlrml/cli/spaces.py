"""`tune-dlrml spaces` lists the searches that come with the package; `schema` prints the schema of such a file."""

from tune_dlrml import builtin
from tune_dlrml.cli.options import AsJson, console, print_json


def spaces(as_json: AsJson = False) -> None:
    """List the searches that come with the package, with the question that each answers.

    Each runs by its name, as in `tune-dlrml search builtin:quickstart`. To change one, copy its file.
    """
    from rich.table import Table

    listed = builtin.search_spaces()
    if as_json:
        print_json(
            [{"name": name, "question": builtin.question(path), "file": str(path)} for name, path in listed.items()]
        )
        return
    table = Table("name", "the question it answers", header_style="bold")
    for name, path in listed.items():
        table.add_row(f"{builtin.PREFIX}{name}", builtin.question(path))
    reader = console(False)
    reader.print(table)
    folder = next(iter(listed.values())).parent
    reader.print(f"files: {folder}", highlight=False, markup=False, soft_wrap=True)


def schema() -> None:
    """Print the JSON schema of a search-space file, which editors use to complete and check one."""
    from tune_dlrml.config.json_schema import json_schema

    print_json(json_schema())
