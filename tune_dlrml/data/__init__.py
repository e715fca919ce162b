"""Preference pairs: from a reference to checked rows with an explicit prompt, and the order in which trials see them.

datasets is imported inside the functions that need it, so that checking a configuration stays fast. Code that comes
with a data set is never run.
"""

from tune_dlrml.data.kinds import Found, as_table
from tune_dlrml.data.loading import check_dataset_reference, load_section
from tune_dlrml.data.plan import content_hash, training_order
from tune_dlrml.data.reference import DatasetReference, parse_dataset_reference
from tune_dlrml.data.section import Section
from tune_dlrml.data.selection import Pairs, Selection, select_pairs
from tune_dlrml.data.tokens import TokenRows

__all__ = [
    "DatasetReference",
    "Found",
    "Pairs",
    "Section",
    "Selection",
    "TokenRows",
    "as_table",
    "check_dataset_reference",
    "content_hash",
    "load_section",
    "parse_dataset_reference",
    "select_pairs",
    "training_order",
]
