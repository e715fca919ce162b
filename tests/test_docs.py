"""What README and docs say can be done: every command exists, every search space loads, every link leads somewhere."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import typer.main

from tune_dlrml.cli.main import app
from tune_dlrml.config import parse_config
from tune_dlrml.config.choosing import chosen_loss
from tune_dlrml.config.json_schema import json_schema
from tune_dlrml.config.loading import parse_override
from tune_dlrml.config.yaml_text import parse_yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "docker" / "README.md"])
OTHERS = {"docker", "docker/make-secrets.sh", "export", "git", "mlflow", "pip", "ray", "source", "python3"}
"""Programs that are not this project's; nothing is checked of them but that they are meant to be there."""
QUICK = ("spaces", "schema", "losses")
"""Commands that need neither a model nor a search, and a few seconds."""
SCHEMA = json_schema()
CHECK = jsonschema.Draft202012Validator(SCHEMA)
REST = {
    "name": "rest",
    "model": "org/model",
    "dataset": {"train": "builtin:sentiment_train", "eval": "builtin:sentiment_eval"},
    "training": {"max_steps": 100},
    "search": {"num_trials": 2},
    "space": {"losses": [{"name": "dpo"}]},
}
"""What a part of a search-space file is put into."""


def blocks(*languages):
    """Every fenced block in one of the languages, with the place of its first line."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
            if found[1] in languages:
                line = text.count("\n", 0, found.start()) + 2
                yield f"{page.relative_to(ROOT)}:{line}", found[2]


def commands():
    """The words of every command line once, continued lines as one, with the place where it stands first."""
    found = {}
    for place, text in blocks("sh", "bash", "console"):
        for line in text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line.removeprefix("$ "), comments=True):
                found.setdefault(tuple(words), place)
    return [pytest.param(list(words), id=f"{place} {' '.join(words)}") for words, place in found.items()]


def own(words):
    """The arguments of `tune-dlrml` in a command line; None where it is not called."""
    at = next((index for index, word in enumerate(words) if Path(word).name == "tune-dlrml"), None)
    end = words.index(">") if ">" in words else len(words)
    return None if at is None else words[at + 1 : end]


def is_key(key):
    """Whether a dotted key is one of a search-space file."""
    sections = [SCHEMA]
    for part in key.split("."):
        fields = [section["properties"][part] for section in sections if part in section.get("properties", {})]
        if not fields:
            return False
        forms = [form for field in fields for form in (field, *field.get("anyOf", ()))]
        sections = [SCHEMA["$defs"][form["$ref"].rpartition("/")[2]] for form in forms if "$ref" in form]
    return True


def merged(base, part):
    """A mapping with another laid over it, section by section."""
    both = [key for key in part if isinstance(part[key], dict) and isinstance(base.get(key), dict)]
    return base | part | {key: merged(base[key], part[key]) for key in both}


@pytest.mark.parametrize("words", commands())
def test_a_command_exists_with_its_options(words):
    program, arguments = words[0], own(words)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(words[1:2]) <= set(targets)
    elif arguments is None:
        assert program in OTHERS
    if arguments is None:
        return
    command, name = typer.main.get_command(app), "tune-dlrml"
    while arguments and arguments[0] in getattr(command, "commands", {}):
        command, name = command.commands[arguments[0]], arguments[0]
        arguments = arguments[1:]
    given = command.make_context(name, list(arguments)).params  # refuses what the command does not take
    overrides = given.get("set_") or []
    if name == "show":
        chosen_loss(given["name"], overrides)
    else:
        assert [key for key, _ in (parse_override(override, {}) for override in overrides) if not is_key(key)] == []


@pytest.mark.parametrize("words", [each for each in commands() if (own(each.values[0]) or [""])[0] in QUICK])
def test_a_quick_command_runs(words, tmp_path):
    line = " ".join(word if word == ">" else shlex.quote(word) for word in words)
    found = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=os.environ | found, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout or any(path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize(("place", "text"), [pytest.param(*block, id=block[0]) for block in blocks("yaml")])
def test_a_search_space_file_or_a_part_of_one_is_legal(place, text):
    document, _ = parse_yaml(text, place)
    if document is None:
        assert text.startswith("# yaml-language-server: $schema=")
        return
    part = {"space": {"losses": document}} if isinstance(document, list) else document
    whole = merged(REST, part)
    if "discovery" in part:
        whole["space"] = part.get("space", {})
        whole["search"] = part.get("search", {})
    parse_config(whole, source=place)
    CHECK.validate(whole)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_link_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = target.partition("#")
        file = (page.parent / path) if path else page
        if file.parent.name == "reference":  # made when the site is built, which checks these
            continue
        assert file.exists(), f"{page.name} links to {target}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", each).strip().lower().replace(" ", "-") for each in headings}


def test_the_readme_is_a_page_and_not_a_manual():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= 9_000
    assert "make quickstart" in text
    assert "make test" in text
