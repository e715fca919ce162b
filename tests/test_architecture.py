"""Imports go down, each vendor has one place, and only the command line reads arguments and the environment."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tune_dlrml"
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = {"builtin/make_sentiment_pairs.py"}
"""Run by hand to make what ships; imported by nothing."""

LAYERS = [
    {"errors", "evaluation.judges.registry"},
    {"system", "pareto", "metrics"},
    {"records", "builtin", "models", "domains"},
    {"losses"},
    {"config"},
    {"space"},
    {"space_points", "data", "events"},
    {"training", "evaluation", "tracking", "cluster", "study"},
    {"discovery"},
    {"search"},
    {"report", "export", "doctor"},
    {"views"},
    {"benches", "notebook"},
    {"cli"},
]
"""From the bottom to the top; a part may import from the layers below its own and from itself.

A table that configurations are checked against is a part by itself, below what it names.
"""
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}

VENDORS = {
    "ray": ("cluster/", "search/", "doctor/cluster.py", "doctor/measure.py", "training/worker.py"),
    "optuna": ("study/",),
    "trl": ("training/arguments.py", "training/pairs/batches.py", "training/trainer.py"),
    "mlflow": ("tracking/mlflow/",),
    "pandas": ("notebook.py",),
    "openai": ("evaluation/endpoint/",),
    "sklearn": ("evaluation/alpaca_eval/length_controlled.py",),
    "vllm": ("evaluation/engines/vllm.py",),
    "bitsandbytes": ("models/quantization.py",),
    "vaderSentiment": ("builtin/make_sentiment_pairs.py", "evaluation/frontier/rewards.py"),
    "matplotlib": ("evaluation/mt_bench/radar.py", "evaluation/frontier/picture.py", "report/"),
    "ruamel": ("config/yaml_text.py",),
    "yaml": (),
    "datasets": ("data/", "training/", "evaluation/mt_bench/questions.py"),
    "torch": (
        "discovery/",
        "losses/",
        "training/",
        "evaluation/",
        "models/",
        "discovery/",
        "builtin/make_sentiment_pairs.py",
    ),
}


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def place(path):
    return path.relative_to(PACKAGE).as_posix()


def part_of(module):
    """The part that a module below the package is in: by its first name, unless the module is one by itself."""
    return next((part for part in RANK if "." in part and f"{module}.".startswith(f"{part}.")), module.split(".")[0])


def part(path):
    return part_of(module(path))


@cache
def imported(path):
    """Dotted names of all modules that a file imports, at its top or inside a function."""
    names = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def test_every_part_of_the_package_has_a_layer():
    assert {part(path) for path in FILES} - {"__init__", "__main__"} <= set(RANK)


def test_imports_are_absolute():
    nodes = [(path, node) for path in FILES for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)]
    assert [f"{place(path)}:{node.lineno}" for path, node in nodes if node.level] == []


def test_imports_go_down_only():
    upward = []
    for path in FILES:
        own = {part_of(name.removeprefix("tune_dlrml.")) for name in imported(path) if name.startswith("tune_dlrml.")}
        own -= {part(path)}
        if place(path) not in SCRIPTS and part(path) != "__main__":
            upward += [f"{place(path)} imports {name}" for name in own if RANK[name] >= RANK.get(part(path), 0)]
    assert upward == []


def test_a_vendor_is_imported_in_its_place_only():
    misplaced = []
    for path in FILES:
        for name in imported(path):
            allowed = VENDORS.get(name.partition(".")[0])
            if allowed is not None and not place(path).startswith(allowed):
                misplaced.append(f"{place(path)} imports {name}; allowed: {allowed}")
    assert misplaced == []


def test_no_part_imports_a_script():
    names = {f"tune_dlrml.{script.removesuffix('.py').replace('/', '.')}" for script in SCRIPTS}
    assert not [place(path) for path in FILES if names & set(imported(path))]


def module(path):
    """Name of a module, without that of the package."""
    return place(path).removesuffix(".py").replace("/", ".")


HEAVY = ["torch", "transformers", "trl", "peft", "datasets", "ray", "optuna", "mlflow"]
LIGHT = [
    "config",
    "space",
    "records",
    "data",
    "models.checkpoints",
    "models.loading",
    *(module(path) for path in FILES if "losses" in path.parts and path.name in ("config.py", "geometry.py")),
    "losses.registry",
    "losses.shape",
    "training.checkpoint",
    "training.reference.cache",
]
"""What the check of a search imports."""
WHAT_EACH_IMPORTS = f"""
import importlib, json, sys
known, new = set(), {{}}
for name in {LIGHT}:
    importlib.import_module("tune_dlrml." + name)
    new[name] = [each for each in {HEAVY} if each in sys.modules and each not in known]
    known.update(new[name])
print(json.dumps(new))
"""


def test_checking_a_search_needs_no_heavy_library():
    command = [sys.executable, "-c", WHAT_EACH_IMPORTS]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {name: [] for name in LIGHT}


@pytest.mark.parametrize(
    ("name", "unused"),
    [
        ("search.tune.slot", {"torch", "transformers", "optuna", "mlflow", "openai"}),  # of Ray Train's controller, too
        ("search.driver", {"torch", "transformers", "trl", "openai", "matplotlib"}),
    ],
)
def test_what_a_search_waits_for_imports_nothing_that_it_does_not_use(name, unused):
    program = f"import sys, tune_dlrml.{name}; print(sorted({unused} & sys.modules.keys()))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def parents(root):
    return {child: node for node in ast.walk(root) for child in ast.iter_child_nodes(node)}


def is_written(node, parent_of):
    """Whether `os.environ` is assigned to or changed here, and its values are not used."""
    parent = parent_of[node]
    if isinstance(parent, ast.Subscript):
        return isinstance(parent.ctx, ast.Store | ast.Del)
    changed = isinstance(parent, ast.Attribute) and parent.attr in ("update", "setdefault", "pop")
    return changed and isinstance(parent_of[parent_of[parent]], ast.Expr)


def reads_of_arguments_and_environment(path):
    parent_of = parents(tree(path))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "sys"):
            yield from (alias.name for alias in node.names if alias.name in ("environ", "getenv", "argv"))
        if not isinstance(node, ast.Attribute) or ast.unparse(node) not in ("os.environ", "os.getenv", "sys.argv"):
            continue
        # Ray takes its settings from the environment alone, so these rooms may write them there.
        if not (place(path).startswith(("cluster/", "search/")) and is_written(node, parent_of)):
            yield f"{ast.unparse(node)} in line {node.lineno}"


def test_only_the_command_line_reads_arguments_and_the_environment():
    # Where the environment of a search's processes is made, it is added to, and put back afterwards.
    others = [path for path in FILES if part(path) != "cli" and place(path) != "cluster/environment.py"]
    assert [f"{place(path)}: {read}" for path in others for read in reads_of_arguments_and_environment(path)] == []


def test_what_counts_as_reading_the_environment(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "search").mkdir()
    program = tmp_path / "search" / "driver.py"
    program.write_text(
        "import os\n"
        "os.environ['A'] = 'written'\n"
        "del os.environ['A']\n"
        "os.environ.update(A='written')\n"
        "os.environ.pop('A', None)\n"
        "a = os.environ['A']\n"
        "b = os.environ.pop('A')\n"
        "c = os.environ.get('A')\n"
        "d = dict(os.environ)\n"
        "e = os.getenv('A')\n",
        encoding="utf-8",
    )
    lines = [int(read.split()[-1]) for read in reads_of_arguments_and_environment(program)]
    assert sorted(lines) == [6, 7, 8, 9, 10]


def test_consoles_are_made_in_one_place():
    nodes = [(path, node.func) for path in FILES for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    makers = {place(path) for path, called in nodes if isinstance(called, ast.Name) and called.id == "Console"}
    assert makers == {"system/streams.py"}, "reading_console leaves `:m:` in a name as it is"
