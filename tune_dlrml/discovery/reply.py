"""A proposed loss read from a language model's reply. Nothing of a reply is run here.

What models do around and inside code is tolerated: thoughts, prose, fences of any kind or none, typographic quotes,
tabs, imports of what is given anyway, `x += y`. What the function may be is `losses/proposed/allowed.py`.
"""

import ast
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from tune_dlrml.domains import Choice, Range
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.judges.thoughts import final_answer
from tune_dlrml.losses.custom.config import CustomParams
from tune_dlrml.losses.proposed.allowed import Allowed, allowed
from tune_dlrml.losses.proposed.config import ProposedLoss

CHARACTERS = 100_000
"""Of a reply that is read."""
LARGEST = 1e9
"""Of the ends of a range."""
LINE = 300
"""Characters of a line in which a range is looked for."""
RANGE_FORM = "# beta: 0.01 to 1, log"
"""How a reply says where a scalar is searched: evenly without `, log`, in whole numbers with `, whole`."""

_FENCE = re.compile(r"^[ \t>]*(?P<marks>`{3,}|~{3,})[^`\n]*$")
_DEF = re.compile(r"^[ \t]*(?:async[ \t]+)?def[ \t]+(\w*)", re.MULTILINE)
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = rf"^\W*{{name}}[^\w.+-]*({_NUMBER})\s*(?:to|\.\.\.?|-|,)\s*({_NUMBER})(.*)$"
_LETTERS = str.maketrans({**dict.fromkeys("‘’‚′", "'"), **dict.fromkeys("“”„″", '"'), **dict.fromkeys("‐‑‒–—−", "-")})
_WITHOUT_WIDTH = str.maketrans(dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff"))
_GIVEN_IMPORTS = {("torch", None), ("math", None), ("torch.nn", "nn"), ("torch.nn.functional", "F")}
_GIVEN_NAMES = {("torch.nn", "functional", "F"), ("torch", "Tensor", None), ("__future__", "annotations", None)}


@dataclass(frozen=True)
class Proposal:
    """A loss that a language model proposed, within the allow-list.

    Attributes:
        name: Of the function, and of the branch of its trials.
        reasoning: The prose around the function, else its docstring.
        code: The text of the function.
        params: Its scalars by name, each a value or a domain.
    """

    name: str
    reasoning: str
    code: str
    params: CustomParams

    @property
    def loss(self) -> ProposedLoss:
        """The loss, as an entry of `space.losses` has it."""
        return ProposedLoss(code=self.code, params=self.params)


def read_reply(reply: str, known: Mapping[str, Range | Choice]) -> Proposal:
    """The proposal of a reply.

    Args:
        reply: All that the model answered.
        known: Where a scalar is searched if neither the reply nor a default says it, by name.

    Raises:
        InputError: It has none, or one outside the allow-list; the message has the line, counted from the first of the
            code, and what to write instead.
    """
    if len(reply) > CHARACTERS:
        raise InputError(f"a reply has at most {CHARACTERS} characters, but this one has {len(reply)}")
    answer = final_answer(reply.translate(_WITHOUT_WIDTH).replace("\r\n", "\n").replace("\r", "\n"))
    block, prose, closed = _only_block(answer)
    try:
        code = _prepared(block)
        found = allowed(code)
    except InputError as error:
        cut = "" if closed else "; the reply ends inside the function, so answer more briefly"
        raise InputError(f"{error}{cut}") from None
    scalars = {name: _searched(name, found, block, known) for name in found.scalars}
    if "beta" not in scalars:
        raise InputError("line 1: the function takes beta, which scales the margin: def name(pairs, *, beta):")
    reasoning = prose or ast.get_docstring(found.tree) or ""
    try:
        params = CustomParams.model_validate(scalars)
    except ValidationError as error:
        raise InputError(f"line 1: {error.errors()[0]['msg']}") from None
    return Proposal(found.name, reasoning, code, params)


def _only_block(answer: str) -> tuple[str, str, bool]:
    """The text that has the function, the prose around it, and whether the text was closed."""
    fenced, prose = _fenced(answer)
    blocks = {block.strip(): closed for block, closed in fenced if _DEF.search(block)}
    if not blocks:
        bare, around = _bare(answer)
        if bare is None:
            raise InputError(
                "the reply has no function; one is needed, def name(pairs, *, beta):"
                if answer.strip()
                else "the reply has no answer behind its thoughts; one function is needed, def name(pairs, *, beta):"
            )
        return bare, _one_line(around), True
    if len(blocks) > 1:
        names = [match[1] for block in blocks for match in _DEF.finditer(block)]
        raise InputError(f"one function is needed, but the reply has {len(names)}: {', '.join(names)}")
    ((block, closed),) = blocks.items()
    return block, _one_line(prose), closed


def _fenced(answer: str) -> tuple[list[tuple[str, bool]], str]:
    """What stands between fences, with whether they are closed, and what stands outside."""
    blocks: list[tuple[str, bool]] = []
    prose: list[str] = []
    inside: list[str] | None = None
    marks = ""
    for line in answer.split("\n"):
        match = _FENCE.match(line)
        if inside is None and match:
            inside, marks = [], match["marks"]
        elif inside is not None and match and line.strip(" \t>").startswith(marks) and not line.strip(" \t>`~"):
            blocks.append(("\n".join(inside), True))
            inside = None
        else:
            (prose if inside is None else inside).append(line)
    if inside is not None:
        blocks.append(("\n".join(inside), False))
    return blocks, "\n".join(prose)


def _bare(answer: str) -> tuple[str | None, str]:
    """A function without a fence, up to the first line that is not part of it, and the rest."""
    lines = answer.split("\n")
    starts = [at for at, line in enumerate(lines) if re.match(r"(?:async )?def\s+\w+\s*\(", line)]
    if not starts:
        return None, answer
    if len(starts) > 1:
        names = ", ".join(match[1] for at in starts if (match := _DEF.match(lines[at])))
        raise InputError(f"one function is needed, but the reply has {len(starts)}: {names}")
    first = last = starts[0]
    while first > 0 and re.match(r"#|@|import |from \w", lines[first - 1]):
        first -= 1
    while last + 1 < len(lines) and re.match(r"[ \t)#]|\s*$|-> ", lines[last + 1]):
        last += 1
    return "\n".join(lines[first : last + 1]), "\n".join([*lines[:first], *lines[last + 1 :]])


def _one_line(prose: str) -> str:
    return " ".join(prose.split())


def _prepared(block: str) -> str:
    """The block as Python that has to be no more than one function."""
    text = "".join(" " if unicodedata.category(each) == "Zs" else each for each in block.translate(_LETTERS))
    text = textwrap.dedent("\n".join(line.rstrip() for line in text.expandtabs(4).split("\n"))).strip("\n")
    tree = _tree(text)
    if tree is None:
        return text  # and `allowed` says what is wrong
    edits = [*_needless_imports(tree), *_assignments_with_operators(tree, text)]
    lines = text.encode().split(b"\n")
    for node, replacement in sorted(edits, key=lambda edit: (edit[0].lineno, edit[0].col_offset), reverse=True):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        whole = lines[first][: node.col_offset] + replacement.encode() + lines[last][node.end_col_offset :]
        lines[first : last + 1] = whole.split(b"\n") if whole.strip() else []
    return b"\n".join(lines).decode().strip("\n")


def _tree(text: str) -> ast.Module | None:
    if "\0" in text:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _needless_imports(tree: ast.Module) -> Iterator[tuple[ast.stmt, str]]:
    """Imports above the function of names that it is given."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            needless = all((alias.name, alias.asname) in _GIVEN_IMPORTS for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            of_types = node.module in ("typing", "tune_dlrml.losses")
            needless = of_types or all((node.module, each.name, each.asname) in _GIVEN_NAMES for each in node.names)
        else:
            continue
        if needless:
            yield node, ""


def _assignments_with_operators(tree: ast.Module, text: str) -> Iterator[tuple[ast.stmt, str]]:
    """`x += y` as `x = x + (y)`, which edits no tensor."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            operation = ast.BinOp(ast.Name("a"), node.op, ast.Name("b"))
            sign = ast.unparse(operation)[1:-1]
            value = ast.get_source_segment(text, node.value)
            yield node, f"{node.target.id} = {node.target.id}{sign}({value})"


def _searched(
    name: str, found: Allowed, block: str, known: Mapping[str, Range | Choice]
) -> float | int | bool | Range | Choice:
    pattern = re.compile(_RANGE.format(name=re.escape(name)), re.IGNORECASE)
    for line in _said(block):
        match = pattern.match(line)
        if match:
            return _range(name, *match.groups())
    default = found.scalars[name]
    if default is not None:
        return default
    if name in known:
        return known[name]
    remedy = RANGE_FORM.replace("beta", name)
    raise InputError(f"line 1: {name} has no range; write a line `{remedy}` above the function, or give it a default")


def _said(block: str) -> Iterator[str]:
    """Comments and the lines of the docstring, without what marks them."""
    for line in block.translate(_LETTERS).split("\n"):
        before, hash_sign, comment = line.partition("#")
        yield (comment if hash_sign else before.replace('"""', ""))[:LINE]


def _range(name: str, low: str, high: str, rest: str) -> Range:
    whole = re.search(r"\b(?:whole|int|integer)", rest) is not None
    kind = ("log_" if re.search(r"\blog", rest) else "") + ("int_" if whole else "") + "uniform"
    bounds = [float(each) for each in (low, high)]
    if not (-LARGEST < bounds[0] < bounds[1] < LARGEST) or (kind.startswith("log") and bounds[0] <= 0):
        raise InputError(f"line 1: the range of {name} is low to high, above 0 for a log one, but got {low} to {high}")
    if whole:
        if not all(bound.is_integer() for bound in bounds):
            raise InputError(f"line 1: a range in whole numbers has whole ends, but that of {name} is {low} to {high}")
        return Range(kind=kind, low=int(bounds[0]), high=int(bounds[1]))  # type: ignore[arg-type]
    return Range(kind=kind, low=bounds[0], high=bounds[1])  # type: ignore[arg-type]
