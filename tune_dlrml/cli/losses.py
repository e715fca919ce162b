"""`tune-dlrml losses`: lists the losses; `show` draws one of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tune_dlrml.cli.options import AsJson, Settings, console, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from tune_dlrml.losses.profile import Profile, Sides
    from tune_dlrml.losses.shape import Geometry

losses_app = typer.Typer(help="The preference losses that a search can explore.", invoke_without_command=True)
SHOW_KEYS = """
The JSON document:

\b
loss                the loss with all its fields
kind                `pairwise` where it looks at the difference of the two
                    completions alone, else `pointwise`; null for your own
needs_reference     whether it looks at the reference's log-probs
trl                 its loss_type in TRL's DPOTrainer, or another trainer and
                    its loss_type; null where it has none
beta_kl             what scales the margin, per nat: z = beta_kl * margin
batch_coupled       whether pairs depend on the others of their micro-batch;
                    the curve is then that of the first step
c                   beta_mix / (tau * beta_kl); null for a loss without mixing
starts              `wrong` where the slope at margin 0 is positive, so that
                    training lowers the margin; else `right`
trap, barrier       {z, margin, value}, the local minimum and the local maximum
                    above it (nats); null where there is none
bounded             whether the supremum of |dL/dz| is finite
safe_c              [low, high]: bounded slope and no trap; null without c
overflow            by format (float32, bfloat16) and form (stable, published):
                    {below, above}, the margins from which on value or slope
                    is not finite; null where both are finite up to 1e6 nats,
                    and as `published` for a loss that has one form
published           by format, the difference from the stable form:
                    max_relative_difference where both are finite, within 1e4
                    nats, at_margin, and nan {below, above}; null with one form
curve               {margin, value, slope}, in float64; empty for a loss without
                    a reference, for which all from c on is null or empty too
picture             path of the PNG; null if none was written
"""


@losses_app.callback()
def losses(context: typer.Context, as_json: AsJson = False) -> None:
    """List the losses, their fields and where they come from."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from tune_dlrml.losses.base import OPTIONS
    from tune_dlrml.losses.registry import NOT_HERE, described

    documents = described()
    if as_json:
        print_json(documents)
        return
    columns = ("name", "fields (default)", "what it is", "kind", "reference", "as published", "source")
    table = Table(*columns, header_style="bold")
    for document in documents:
        fields = ", ".join(f"{key} ({value})" for key, value in document["fields"].items())
        description, source = (document[key] or "the user's own" for key in ("description", "source"))
        kind = document["kind"] or "either"
        reference = "needed" if document["needs_reference"] else "none"
        shape = _in_short(document["shape"])
        table.add_row(document["name"], fields, description, kind, reference, shape, source)
    reader = console(False)
    reader.print(table)
    reader.print("Beside its own fields a loss takes:", highlight=False)
    for option in OPTIONS:
        reader.print(f"  {option} ({_takers(option, documents)})", highlight=False)
    for name, reason in NOT_HERE.items():
        reader.print(f"Not here: {name}, because {reason}.", highlight=False)


def _takers(option: str, documents: Sequence[Mapping[str, Any]]) -> str:
    """Which losses take an option, in as few names as there are."""
    takers, others = (
        [document["name"] for document in documents if (option in document["options"]) is taken]
        for taken in (True, False)
    )
    if not others:
        return "every loss"
    return f"all but {', '.join(others)}" if len(others) < len(takers) else ", ".join(takers)


@losses_app.command(epilog=SHOW_KEYS)
def show(
    name: Annotated[str, typer.Argument(help="Name of the loss, as in a search-space file.")],
    set_: Settings = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.png", help="The picture [NAME.png].")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a loss and its slope over the margin, and print its start, its trap and where it overflows.

    Fields that are not set have the values that `tune-dlrml losses` lists. With --json a picture is written only if
    --out names one.
    """
    from tune_dlrml.config.choosing import chosen_loss

    config = chosen_loss(name, set_ or [])
    from tune_dlrml.system.imports import importing

    with importing():
        from tune_dlrml.losses.profile import profile

    seen = profile(config)
    picture = out if out is not None or as_json else Path(f"{name}.png")
    if seen.geometry is None:
        picture = None
    if picture is not None:
        from tune_dlrml.report.loss_picture import write_picture

        write_picture(seen, picture)
    if as_json:
        print_json(seen.as_json() | {"picture": None if picture is None else str(picture)})
        return
    reader = console(False)
    reader.print(_table(seen))
    if picture is not None:
        reader.print(f"picture: {picture}", highlight=False, markup=False, soft_wrap=True)


def _in_short(shape: "Mapping[str, Any] | None") -> str:
    """Where a loss starts, its trap and its slope, as far as they are to be known of."""
    if shape is None:
        return "-"
    starts = ["starts wrong"] if shape["starts"] == "wrong" else []
    trap = [] if shape["trap"] is None else ["trap"]
    return ", ".join([*starts, *trap, "bounded" if shape["bounded"] else "unbounded"])


def _table(seen: "Profile") -> "Table":
    """The numbers beside the picture."""
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    settings = ", ".join(f"{key} {_short(value)}" for key, value in seen.settings.items())
    table.add_row("loss", f"{seen.loss.name}: {settings}" if settings else seen.loss.name)
    reference = "with a reference" if seen.loss.needs_reference else "without a reference"
    table.add_row("kind", f"{seen.loss.kind or 'your own'}, {reference}")
    if seen.batch_coupled:
        table.add_row("pairs", "coupled over the micro-batch; drawn for the first step, where every margin is 0")
    if seen.geometry is None:
        table.add_row("shape", "none over the margin: it is a function of the policy's own log-probabilities")
        return table
    _add_shape(table, seen, seen.geometry)
    return table


def _add_shape(table: "Table", seen: "Profile", geometry: "Geometry") -> None:
    if geometry.c is not None:
        table.add_row("c = beta_mix / (tau · beta_kl)", _c_in_words(geometry.c))
    table.add_row("at margin 0", _start(geometry))
    for what, point in (("trap", geometry.trap), ("barrier", geometry.barrier)):
        if point is not None:
            margin = f"margin {point.margin(seen.beta_kl):+.4g} nats (z {point.z:+.4g})"
            table.add_row(what, f"{margin}, loss {point.value:.4f} nats")
    if geometry.trap is None:
        table.add_row("trap", "none")
    table.add_row("slope", "bounded" if geometry.bounded else "unbounded: one far pair can outweigh a whole batch")
    for name, forms in seen.overflow.items():
        texts = {form: _overflow(sides) for form, sides in forms.items() if sides is not None}
        several = len(texts) > 1
        text = "; ".join(f"{form}: {each}" if several else each for form, each in texts.items())
        table.add_row(f"overflow in {name}", text)
    for name, difference in (seen.published or {}).items():
        off = f"at most {difference.largest:.1g} from the stable form, at margin {difference.margin:+.3g}"
        nan = "" if difference.nan.below is difference.nan.above is None else f"; {_overflow(difference.nan, 'NaN')}"
        table.add_row(f"published in {name}", off + nan)


def _start(geometry: "Geometry") -> str:
    value = f"loss {geometry.value_at_zero:.4f} nats"
    if geometry.starts == "wrong":
        return f"{value}; starts wrong: the slope is positive, so the first steps lower the margin"
    return f"{value}; starts right: the slope is not positive"


def _c_in_words(c: float) -> str:
    from tune_dlrml.losses.lrml.geometry import SAFE_BAND

    low, high = SAFE_BAND
    where = "inside" if low <= c <= high else "below" if c < low else "above"
    return f"{c:.4g}, {where} the safe band {low:g} to {high:.4g}"


def _overflow(sides: "Sides", what: str = "not finite") -> str:
    named = {"below": sides.below, "above": sides.above}
    places = [f"{side} {margin:+.4g}" for side, margin in named.items() if margin is not None]
    return f"{what} {' and '.join(places)} nats" if places else "finite up to 1e6 nats on either side"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
