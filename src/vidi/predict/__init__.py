"""Many images to rows: files are found, decoded in threads, predicted in batches, written down.

Memory does not grow with the number of files: names are listed as they are needed, and a bounded
number of images is on its way at any time.
"""

from __future__ import annotations

from vidi.predict.inputs import Found, find
from vidi.predict.job import rows_of, write_rows
from vidi.predict.outputs import FORMATS, Columns, Row, columns_of, format_of
from vidi.predict.work import Counts, predict_files

__all__ = [
    "FORMATS",
    "Columns",
    "Counts",
    "Found",
    "Row",
    "columns_of",
    "find",
    "format_of",
    "predict_files",
    "rows_of",
    "write_rows",
]
