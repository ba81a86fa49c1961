"""How long an audit takes, what it finds, and how a table of ten million paths is opened.

    python benchmarks/audit.py [--photos FOLDER] [--fashion FOLDER] [--rows 10000000]

FOLDERs are an image folder (clothing-dataset-small in docs/measurements.md) and Fashion-MNIST's IDX
files, in which ten test images are planted: copies of training images, and the same a little
darker. Each part runs in a process of its own. The bars:

    audit of the photos       25 s
    audit of 70,000 images    30 s, and it finds the planted ones
    a table                   20 s and 1.5 GB for ten million rows; the first batch at once

The ten million paths are those of a thousand links to one folder of ten thousand small pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import simplejpeg

from vidi.config import DataConfig
from vidi.data import Audit, Dataset, Loader, audit, open_dataset, open_store
from vidi.data.arrays import from_parts
from vidi.data.idx import read_idx
from vidi.image import PixelContract

THREADS = 2
FOLDER = "archive/2024"
PICTURES = 10_000


def timed(report: Audit, bar_s: float) -> None:
    print(f"{report.name}: {report.num_found:,} files in {report.elapsed_s:.1f} s (bar: {bar_s} s)")
    for finding in report.findings:
        print(f"    {finding.severity:8} {finding.code:15} {finding.message}")


def audit_photos(folder: Path) -> None:
    timed(audit(open_dataset(folder), threads=THREADS)[1], 25)


def audit_fashion(folder: Path) -> None:
    def part(name: str) -> tuple[np.ndarray, np.ndarray]:
        images = read_idx(folder / f"{name}-images-idx3-ubyte.gz")[:, :, :, None]
        return images.copy(), read_idx(folder / f"{name}-labels-idx1-ubyte.gz").astype(np.int64)

    train, test = part("train"), part("t10k")
    rng = np.random.default_rng(0)
    planted = rng.choice(len(test[0]), 20, replace=False)
    source = rng.choice(len(train[0]), 20, replace=False)
    test[0][planted[:10]] = train[0][source[:10]]
    test[0][planted[10:]] = (0.97 * train[0][source[10:]]).astype(np.uint8)
    test[1][planted] = train[1][source]
    classes = tuple(map(str, range(10)))
    dataset = from_parts("fashion-mnist", {0: train, 2: test}, classes, DataConfig())
    report = audit(dataset, threads=THREADS)[1]
    timed(report, 30)
    group_of = {row: number for number, rows in enumerate(report.same) for row in rows}
    pairs = zip(source.tolist(), (len(train[0]) + planted).tolist(), strict=True)
    found = [group_of.get(one, -1) == group_of.get(other, -2) for one, other in pairs]
    exact, near = sum(found[:10]), sum(found[10:])
    print(f"    planted: {exact} of 10 copies and {near} of 10 darker copies found")


def open_table(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        with path.open("w") as file:
            file.write("image,label\n")
            for start in range(0, rows, PICTURES):
                file.writelines(
                    f"{FOLDER}/shard-{n // PICTURES:05d}/image-{n % PICTURES:010d}.jpg,"
                    f"class-{n % 1000}\n"
                    for n in range(start, min(start + PICTURES, rows))
                )
        write_pictures(Path(folder) / FOLDER, -(-rows // PICTURES))
        before = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began_at = time.perf_counter()
        dataset = open_dataset(path)
        elapsed_s = time.perf_counter() - began_at
        most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert len(dataset) == rows
        print(
            f"a table of {rows:,} paths: {elapsed_s:.1f} s (bar: 20 s), at most "
            f"{most / 1e9:.2f} GB (bar: 1.5 GB), of which {before / 1e9:.2f} GB before"
        )
        began_at = time.perf_counter()
        facts = dataset.facts()
        first_batch(dataset)
        print(
            f"    its sizes and its first batch of 64: {time.perf_counter() - began_at:.1f} s more "
            f"({sum(facts.counts['train']):,} training images, in random order)"
        )


def write_pictures(folder: Path, shards: int) -> None:
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        (pictures / f"image-{number:010d}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels))
    for number in range(shards):
        (folder / f"shard-{number:05d}").symlink_to(pictures)


def first_batch(dataset: Dataset) -> None:
    contract = PixelContract(
        image_px=16,
        store_px=16,
        resize="squash",
        interpolation="bilinear",
        channels=3,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    with contextlib.closing(open_store(dataset, contract, place="stream")) as store:
        train = dataset.indices("train")
        loader = Loader(store, dataset.labels, train, batch_size=64, shuffle=True)
        with contextlib.closing(loader.batches(0)) as batches:
            assert len(next(batches).images) == 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--only", choices=["photos", "fashion", "table"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only == "photos":
        audit_photos(asked.photos)
    elif asked.only == "fashion":
        audit_fashion(asked.fashion)
    elif asked.only == "table":
        open_table(asked.rows)
    else:
        wanted = {"photos": asked.photos, "fashion": asked.fashion, "table": asked.rows}
        for name in (name for name, value in wanted.items() if value):
            subprocess.run([sys.executable, *sys.argv, "--only", name], check=True)


if __name__ == "__main__":
    main()
