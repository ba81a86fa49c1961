"""The whole of `vidi predict`: from what was named to a file of rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from vidi.errors import UsageError
from vidi.predict.inputs import find
from vidi.predict.outputs import (
    Columns,
    Format,
    Row,
    check_continues,
    done_files,
    open_writer,
)
from vidi.predict.work import Counts, predict_files
from vidi.predictor import Predictor
from vidi.storage import shown

# Rows that a kill may cost; writing a hundred takes less time than one more image.
_FLUSH_EVERY: Final = 32


def rows_of(
    predictor: Predictor,
    paths: Sequence[str],
    columns: Columns,
    counts: Counts,
    *,
    listed: Iterable[str] = (),
    threads: int | None = None,
) -> Iterator[Row]:
    """`predict_files` of what was named. Raises UsageError for what is not there."""
    return predict_files(predictor, find(paths, listed=listed), columns, counts, threads=threads)


def write_rows(
    predictor: Predictor,
    paths: Sequence[str],
    out: Path | IO[str],
    form: Format,
    columns: Columns,
    *,
    listed: Iterable[str] = (),
    resume: bool = False,
    threads: int | None = None,
    show: Callable[[Counts], None] = lambda _: None,
) -> Counts:
    """Predict all files into one file of rows.

    resume: go on after the rows that are there; files that have one are passed over.

    Raises:
        UsageError: the file exists and `resume` was not said, or what was named is not there.
        MismatchError: it was begun by another model or with other columns.
    """
    counts = Counts()
    done = None
    append = False
    if isinstance(out, Path):
        append = resume and os.path.lexists(out)
        if not append and os.path.lexists(out):
            raise UsageError(
                f"{shown(out)} exists already", fix="--resume goes on with it; or name another file"
            )
        about: dict[str, Any] = {
            "model": predictor.origin,
            "calibrated": predictor.calibrated,
            "views": predictor.views,
            "abstain_below": predictor.abstain_below,
            "top": columns.top,
            "probabilities": columns.probabilities,
            "embedding": columns.num_features,
        }
        if append:
            check_continues(out, about, resume=True)
            done = done_files(out, form)
        elif form != "parquet":
            check_continues(out, about, resume=False)
    elif resume:
        raise UsageError("only a file can be continued", fix="--out FILE.jsonl")
    files = find(paths, listed=listed)
    with open_writer(out, form, columns, append=append) as writer:
        for row in predict_files(predictor, files, columns, counts, done=done, threads=threads):
            writer.write(row)
            if counts.done % _FLUSH_EVERY == 0 and form != "parquet":
                writer.flush()
            show(counts)
    return counts
