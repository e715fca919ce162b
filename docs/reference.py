"""Writes the pages of the reference out of the code, whenever the site is built; mkdocs.yml names it."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import mkdocs_gen_files
import typer.main

import tune_dlrml.losses
from tune_dlrml import builtin
from tune_dlrml.cli.main import app
from tune_dlrml.config.json_schema import json_schema
from tune_dlrml.losses.base import Loss
from tune_dlrml.losses.profile import Profile, profile
from tune_dlrml.losses.registry import published
from tune_dlrml.metrics import METRICS, Metric

SCHEMA = json_schema()
REPORTED = {
    "evaluation": "On the held-out pairs, at every rung and at the end",
    "steps": "On the pairs trained on, as means over the optimizer steps since the last report",
    "start": "Once, when a trial starts",
    "judgement": "By judges, of the answers of a trial",
}


def main() -> None:
    """Write all four pages."""
    pages: dict[str, Callable[[], Iterator[str]]] = {
        "search-space": search_space,
        "commands": commands,
        "metrics": metrics,
        "losses": losses,
        "spaces": spaces,
    }
    for name, content in pages.items():
        with mkdocs_gen_files.open(f"reference/{name}.md", "w") as file:
            file.write("\n".join(content()) + "\n")


def search_space() -> Iterator[str]:
    """Every key of a search-space file."""
    yield from (
        "# Every key of a search-space file\n",
        "A file is YAML 1.2: `5e-7` and `.5` are numbers; `010`, `1:30` and what is in quotes are text. A *domain* is "
        "one of `{uniform: [low, high]}`, `{log_uniform: [low, high]}`, `{int_uniform: [low, high]}`, "
        "`{log_int_uniform: [low, high]}`, each with `num` points for a grid, and `{choice: [...]}`. On the command "
        "line a key is set by `--set search.num_trials=8`.\n",
        HEADER,
    )
    sections = []
    for key, field in SCHEMA["properties"].items():
        if (section := section_of(field)) is not None:
            sections.append((key, section))
        yield row(key, field, key in SCHEMA["required"])
    for key, section in sections:
        yield from (f"\n## {key}\n", text(section["description"]) + "\n", HEADER, *rows(section, f"{key}."))


HEADER = "| key | what it takes | default | what it means |\n|---|---|---|---|"


def rows(section: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A line of the table for each key of a section, and of the sections in it."""
    for key, field in section["properties"].items():
        yield row(prefix + key, field, key in section.get("required", ()))
        inner = section_of(field)
        if inner is not None:
            yield from rows(inner, f"{prefix}{key}.")


def row(key: str, field: Mapping[str, Any], required: bool) -> str:
    """A line of the table."""
    default = field.get("default")
    plain = "default" in field and not isinstance(default, dict)
    shown = "**needed**" if required else f"`{yaml(default)}`" if plain else ""
    return f"| `{key}` | {kind(field)} | {shown} | {text(field.get('description', ''))} |"


def yaml(value: Any) -> str:
    """A default as the file would hold it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def section_of(field: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section that a key holds; None of a value, and of `losses`."""
    forms = [form["$ref"] for form in (field, *field.get("anyOf", ())) if "$ref" in form]
    return (
        SCHEMA["$defs"][forms[0].rpartition("/")[2]] if len(forms) == 1 and "LearnableBetaMix" not in forms[0] else None
    )


def kind(field: Mapping[str, Any]) -> str:
    """What a key takes, in words."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(map(kind, field["anyOf"])))
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return "`{learnable: true, ...}`" if name.startswith("Learnable") else "section"
    if "const" in field:
        return f"`{yaml(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "choice" in field.get("properties", {}):
        return "domain"
    if field.get("type") == "array":
        return f"list of {kind(field['items'])}" if "items" in field else "`[low, high]`"
    if "oneOf" in field:
        return "[losses](losses.md)"
    names = {"string": "text", "boolean": "`true` or `false`", "object": "mapping", "null": "`null`"}
    bounds = {"exclusiveMinimum": "&gt;", "minimum": ">=", "exclusiveMaximum": "&lt;", "maximum": "<="}
    limits = ", ".join(
        f"{sign} {field[bound]}".replace("<=", "&lt;=") for bound, sign in bounds.items() if bound in field
    )
    return f"{names.get(field['type'], field['type'])} {limits}".strip()


def text(words: str) -> str:
    """A sentence of the code in Markdown: only what is between backticks is left as it is."""
    parts = " ".join(words.split()).split("`")
    plain = [part.replace("<", "&lt;").replace("*", "\\*").replace("|", "&#124;") for part in parts[::2]]
    return "`".join(part for pair in zip(plain, [*parts[1::2], ""], strict=False) for part in pair).removesuffix("`")


def commands() -> Iterator[str]:
    """Every command with its options, out of the command line itself."""
    yield from ("# Every command\n", "Exit codes: 0 success, 2 the input is at fault, 3 no trial was complete, 130 "
                "interrupted and resumable. `--json` prints one document and nothing else.\n")  # fmt: skip
    yield from command(typer.main.get_command(app), "tune-dlrml")


def command(of: Any, name: str) -> Iterator[str]:
    """A command, and those below it."""
    if name != "tune-dlrml":
        context = of.context_class(of, info_name=name)
        yield from (f"## {name}\n", text(of.help or "") + "\n")
        yield f"```text\n{of.get_usage(context).removeprefix('Usage: ')}\n```\n"
        yield "| argument or option | what it is |\n|---|---|"
        for parameter in of.params:
            names, words = parameter.get_help_record(context)
            yield f"| `{names}` | {text(words)} |"
        if of.epilog:
            yield "\n```text\n" + inspect.cleandoc(of.epilog).replace("\b\n", "") + "\n```"
        yield ""
    for child, below in getattr(of, "commands", {}).items():
        yield from command(below, f"{name} {child}")


def metrics() -> Iterator[str]:
    """Every number that a trial reports, out of the table of metrics."""
    yield from ("# Every metric\n", "The names are those of MLflow, of `status --json` and of the columns of `curves` "
                "and `trials` in a notebook. A search is decided by one of those marked *objective*.\n")  # fmt: skip
    for reported, words in REPORTED.items():
        yield f"## {words}\n"
        yield "| metric | what it is | unit | range | better | untrained |\n|---|---|---|---|---|---|"
        yield from (metric_row(metric) for metric in METRICS.values() if metric.reported == reported)
        yield ""


def metric_row(metric: Metric) -> str:
    """A line of the table of metrics."""
    words = text(metric.meaning) + (" *Objective.*" if metric.objective else "")
    infinite = (float("-inf"), float("inf"))
    ends = ["" if end in infinite else f"{end:g}" for end in (metric.least, metric.most)]
    span = (
        f"{ends[0]} to {ends[1]}"
        if all(ends)
        else f">= {ends[0]}"
        if ends[0]
        else f"&lt;= {ends[1]}"
        if ends[1]
        else ""
    )
    untrained = "" if metric.untrained is None else f"{metric.untrained:g}"
    return f"| `{metric.name}` | {words} | {metric.unit} | {span} | {metric.better or ''} | {untrained} |"


def losses() -> Iterator[str]:
    """Every loss with formula, geometry and source: the index of papers."""
    yield "# Every loss\n"
    yield "The shape of each as published is computed when this page is made; `tune-dlrml losses show` draws it.\n"
    yield "| loss | source | kind | reference | TRL | c | first step | trap | slope | pairs |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    listed = list(tune_dlrml.losses.list())
    shown = {entry["name"]: shape(entry["name"]) for entry in listed}
    for entry in listed:
        name = entry["name"]
        reference = "needed" if entry["needs_reference"] else "none"
        trl = "" if entry["trl"] is None else f"`{entry['trl']}`"
        told = f"{paper(entry)} | {entry['kind'] or ''} | {reference} | {trl}"
        yield f"| [`{name}`](#{name}) | {told} | {summary(shown[name])} |"
    for entry in listed:
        yield from loss(entry)
    yield "\n## Beside the fields of any loss\n\nEach is refused by the losses that it means nothing to.\n"
    shared = section_of_loss("dpo")["properties"]
    yield from (HEADER, *(row(key, shared[key], required=False) for key in Loss.model_fields if key != "name"))
    for name, title in (
        ("SftTerm", "sft"),
        ("FDivergence", "f_divergence"),
        ("LearnableBetaMix", "beta_mix, learnable"),
        ("LearnableParam", "params, learnable"),
    ):
        section = SCHEMA["$defs"][name]
        yield from (f"\n## {title}\n", text(section["description"]) + "\n", HEADER, *rows(section))


def loss(entry: Mapping[str, Any]) -> Iterator[str]:
    """A loss of its own heading: what it is, its fields, and its function's docstring, which has the formula."""
    section = section_of_loss(entry["name"])
    own = {key: field for key, field in section["properties"].items() if key not in Loss.model_fields}
    yield from (f"\n## {entry['name']}\n", text(section["description"]) + "\n")
    function = function_of(entry["name"])
    if function is not None:
        yield f"```text\n{inspect.getdoc(function)}\n```\n"
    yield from (HEADER, *(row(key, field, key in section["required"]) for key, field in own.items()))


def section_of_loss(name: str) -> dict[str, Any]:
    """The schema of a loss's entry."""
    sections: Iterable[dict[str, Any]] = SCHEMA["$defs"].values()
    return next(of for of in sections if of.get("properties", {}).get("name", {}).get("const") == name)


def spaces() -> Iterator[str]:
    """The searches that come with the package, each with its question and its file."""
    yield "# Searches that come with the package\n"
    yield "`tune-dlrml search builtin:quickstart` runs one by its name; a file to change is in `search_spaces/`.\n"
    yield "| search | the question it answers |\n|---|---|"
    found = builtin.search_spaces()
    yield from (f"| [`builtin:{name}`](#{name}) | {text(builtin.question(path))} |" for name, path in found.items())
    for name, path in found.items():
        yield f"\n## {name}\n\n```yaml\n{path.read_text(encoding='utf-8').strip()}\n```"


def function_of(name: str) -> Any:
    """The function of a loss below `losses/`, of tensors with a pair a row; None of one that is the user's."""
    package = tune_dlrml.losses
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        found = getattr(importlib.import_module(module.name), name, None)
        if inspect.isfunction(found) and found.__module__ == module.name and "_B" in str(inspect.signature(found)):
            return found
    return None


def shape(name: str) -> Profile | None:
    """Of a loss as published."""
    loss = published(name)
    return None if loss is None else profile(loss)


def summary(of: Profile | None) -> str:
    """Of a loss: columns of the index."""
    if of is None:
        return "| | | | "
    if of.geometry is None:
        return "| | none over a margin | | independent"
    trap = of.geometry.trap
    return " | ".join(
        (
            "" if of.geometry.c is None else f"{of.geometry.c:g}",
            "uphill" if of.geometry.starts == "wrong" else "right",
            "none" if trap is None else f"at z = {trap.z:+.3f}",
            "bounded" if of.geometry.bounded else "unbounded",
            "coupled in a batch" if of.batch_coupled else "independent",
        )
    )


def paper(entry: Mapping[str, Any]) -> str:
    """Its source, with a link to arXiv."""
    words = entry.get("source") or ("yours" if entry["name"] == "custom" else entry["description"])
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text(words))


main()
