"""open_dataset: whatever the user calls data, recognised by what it is."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vidi.config import DataConfig
from vidi.data.builtin import open_built_in
from vidi.data.cifar import looks_like_cifar, open_cifar
from vidi.data.custom import Images, from_object, open_custom
from vidi.data.dataset import Dataset
from vidi.data.folder import open_folder
from vidi.data.idx import image_files, open_digits, open_idx
from vidi.data.parquet import is_parquet, open_parquet, parquets_of
from vidi.data.shards import open_shards, shards_of
from vidi.data.table import is_table, open_table, tables_of
from vidi.data_source import BUILT_IN, check, looks_like_shards, path_of
from vidi.errors import UsageError

FORMATS: Final[dict[str, Callable[[Path, DataConfig], Dataset]]] = {
    "folder": open_folder,
    "idx": open_idx,
    "cifar": open_cifar,
    "table": open_table,
    "parquet": open_parquet,
    "shards": open_shards,
}


def open_dataset(
    source: str | Path | Images,
    asked: DataConfig | None = None,
    *,
    say: Callable[[str], None] | None = None,
) -> Dataset:
    """List the images of `source`, give each a class and a split, and read none of them.

    source: an image folder; a table of paths or images and labels (CSV, JSON lines, Parquet), or a
        folder of such; a folder of IDX files, CIFAR's binary files or tar shards; an address or a
        pattern of tar shards; `module:object`, or such an object; a built-in name.
    say: told what takes long, such as a download, one line at a time.

    Raises:
        UsageError: there is nothing at that path, or a name that does not exist.
        DataError: what is there is no data set of at least two classes.
        DamagedError: a file of it is damaged.
    """
    asked = asked or DataConfig()
    if not isinstance(source, str | Path):
        return from_object(source, type(source).__name__, asked)
    text = str(source)
    path = path_of(text)
    if path is not None:
        try:
            return FORMATS[_format_of(path, asked.format)](path, asked)
        except OSError as error:
            # Folders that change while they are looked at, and those that are no real ones.
            where = f" at {os.fsdecode(error.filename)}" if error.filename else ""
            raise UsageError(
                f"cannot read {source}: {error.strerror or error}{where}",
                fix="see that it is there, that you may read it, and that nobody is changing it",
            ) from error
    check(text)
    if text == "digits":
        return open_digits(asked)
    if text in BUILT_IN:
        return open_built_in(text, asked, say=say)
    return open_shards(text, asked) if looks_like_shards(text) else open_custom(text, asked)


def _format_of(path: Path, asked: str | None) -> str:
    if asked is not None:
        if asked not in FORMATS:
            close = difflib.get_close_matches(asked, FORMATS, n=1)
            raise UsageError(
                f"no data format '{asked}'",
                fix=f"did you mean '{close[0]}'?" if close else "known: " + ", ".join(FORMATS),
            )
        return asked
    if path.is_file():
        if is_table(path):
            return "table"
        if is_parquet(path):
            return "parquet"
        if looks_like_shards(str(path)):
            return "shards"
        if "idx" in path.name:
            return "idx"
        raise UsageError(
            f"{path} is a file of a kind that is not recognised",
            fix="give a folder with one sub-folder of images for each class, or a table of paths "
            "and labels (.csv, .tsv, .jsonl, .parquet)",
        )
    if not path.is_dir():
        raise UsageError(
            f"{path} is neither a file nor a folder",
            fix="give a folder with one sub-folder of images for each class",
        )
    if image_files(path):
        return "idx"
    if looks_like_cifar(path):
        return "cifar"
    if tables_of(path):
        return "table"
    if parquets_of(path):
        return "parquet"
    return "shards" if shards_of(path) else "folder"
