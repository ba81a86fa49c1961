"""The input side: whatever the user calls data -> Dataset -> PixelStore -> Loader -> Batch."""

from __future__ import annotations

from vidi.data.audit import OF_PIXELS, Audit, Finding, audit, audit_store, pictures
from vidi.data.cache import (
    CachedStore,
    cache_folder,
    free_bytes,
    list_stores,
    prune,
    replace_file,
)
from vidi.data.custom import Images
from vidi.data.dataset import Dataset, Indices, Skipped
from vidi.data.filling import UnreadableRow
from vidi.data.loader import Loader
from vidi.data.order import balanced_weights, order_of, part_of
from vidi.data.sources import open_dataset
from vidi.data.store import PixelStore, open_store
from vidi.data.symmetry import measure_symmetry

__all__ = [
    "OF_PIXELS",
    "Audit",
    "CachedStore",
    "Dataset",
    "Finding",
    "Images",
    "Indices",
    "Loader",
    "PixelStore",
    "Skipped",
    "UnreadableRow",
    "audit",
    "audit_store",
    "balanced_weights",
    "cache_folder",
    "free_bytes",
    "list_stores",
    "measure_symmetry",
    "open_dataset",
    "open_store",
    "order_of",
    "part_of",
    "pictures",
    "prune",
    "replace_file",
]
