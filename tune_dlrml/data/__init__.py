"""Preference pairs: from a reference to checked rows with an explicit prompt, and the order in which trials see them.

datasets is imported inside the functions that need it, so that checking a configuration stays fast. Code that comes
with a data set is never run.
"""

from tune_dlrml.data.loading import Pairs, check_dataset_reference, load_section
from tune_dlrml.data.plan import batch_plan, content_hash
from tune_dlrml.data.reference import DatasetReference, parse_dataset_reference
from tune_dlrml.data.section import Section
from tune_dlrml.data.selection import Selection, repeated_pairs, select_pairs

__all__ = [
    "DatasetReference",
    "Pairs",
    "Section",
    "Selection",
    "batch_plan",
    "check_dataset_reference",
    "content_hash",
    "load_section",
    "parse_dataset_reference",
    "repeated_pairs",
    "select_pairs",
]
