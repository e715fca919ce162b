"""What a rank of a search holds, as a person reads it."""

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from tune_dlrml.doctor.memory import MemoryEstimate, Placement

GIB = 2**30


def memory_table(memory: "MemoryEstimate") -> Table:
    """The peak of a rank on so many GPUs of each kind, and whether it is there."""
    counts = sorted({placement.ranks for placement in memory.placements})
    table = Table("peak of a rank, GiB", *(f"{count} GPU{'s' * (count > 1)}" for count in counts), header_style="bold")
    table.box, table.padding = None, (0, 2, 0, 0)
    for gpu in dict.fromkeys(placement.gpu for placement in memory.placements):
        table.add_row(f"of {gpu}", *map(_cell, (each for each in memory.placements if each.gpu == gpu)))
    return table


def _cell(placement: "Placement") -> str:
    how = "".join(("s" * placement.sharded, "c" * placement.checkpointing))
    text = f"{placement.peak / GIB:.3g}{' ' + how if how else ''}"
    return f"[green]{text}, {placement.gpu_hours:.3g} h[/]" if placement.fits else f"[red]{text}: too much[/]"


def memory_lines(memory: "MemoryEstimate") -> list[str]:
    """What the table does not say."""
    lines = [
        f"the model has {memory.weights / 1e9:.3g} billion weights; a trial trains {memory.trained / 1e9:.3g} billion"
    ]
    if memory.placements:
        of = "all trials, if none is stopped early" if memory.pairs is not None else "1,000 pairs"
        lines.append(f"s: divided over the GPUs; c: gradient checkpointing; h: GPU-hours of {of}")
    host = ", ".join(f"{name} {size / GIB:.3g} GiB" for name, size in memory.own.host.items())
    return [*lines, f"beside that in main memory, for each rank: {host}", f"assumed: {'; '.join(memory.assumed)}"]
