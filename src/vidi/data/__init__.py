"""The input side: whatever the user calls data -> Dataset -> PixelStore -> Loader -> Batch."""

from __future__ import annotations

from vidi.data.audit import Audit, Finding, audit, audit_store, pictures
from vidi.data.cache import cache_folder
from vidi.data.dataset import Dataset, Skipped
from vidi.data.loader import Loader, order_of
from vidi.data.sources import BUILT_IN, open_dataset
from vidi.data.store import PixelStore, UnreadableRow, open_store
from vidi.data.symmetry import measure_symmetry

__all__ = [
    "BUILT_IN",
    "Audit",
    "Dataset",
    "Finding",
    "Loader",
    "PixelStore",
    "Skipped",
    "UnreadableRow",
    "audit",
    "audit_store",
    "cache_folder",
    "measure_symmetry",
    "open_dataset",
    "open_store",
    "order_of",
    "pictures",
]
