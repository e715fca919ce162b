"""Preference pairs: from a reference to checked rows with an explicit prompt, and the order in which trials see them.

datasets is imported inside the functions that need it, so that checking a configuration stays fast. Code that comes
with a data set is never run.
"""

from tune_dlrml.data.loading import Pairs, check_dataset_reference, load_pairs
from tune_dlrml.data.plan import batch_plan, content_hash, shared_prompts
from tune_dlrml.data.reference import DatasetReference, parse_dataset_reference

__all__ = [
    "DatasetReference",
    "Pairs",
    "batch_plan",
    "check_dataset_reference",
    "content_hash",
    "load_pairs",
    "parse_dataset_reference",
    "shared_prompts",
]
