"""The subsets behind docs/claims.md: the first 750 training images of each class.

    python benchmarks/claims.py FASHION_IDX_FOLDER CIFAR10_TRAIN_FOLDER OUT

The commands to run on them stand in docs/claims.md.
"""

from __future__ import annotations

import gzip
import shutil
import sys
from pathlib import Path

import numpy as np

EACH = 750


def fashion(source: Path, out: Path) -> None:
    """IDX files in, IDX files out; the test files as they are."""
    out.mkdir(parents=True)
    labels_name, images_name = "train-labels-idx1-ubyte.gz", "train-images-idx3-ubyte.gz"
    labels = np.frombuffer(gzip.decompress((source / labels_name).read_bytes())[8:], np.uint8)
    packed = gzip.decompress((source / images_name).read_bytes())
    images = np.frombuffer(packed[16:], np.uint8).reshape(-1, 28, 28)
    kept = np.sort(np.concatenate([np.flatnonzero(labels == k)[:EACH] for k in range(10)]))
    count = len(kept).to_bytes(4, "big")
    side = (28).to_bytes(4, "big")
    heads = {labels_name: (0x801).to_bytes(4, "big") + count,
             images_name: (0x803).to_bytes(4, "big") + count + side + side}  # fmt: skip
    for name, part in ((labels_name, labels[kept]), (images_name, images[kept])):
        (out / name).write_bytes(gzip.compress(heads[name] + part.tobytes(), mtime=0))
    for path in source.glob("t10k-*.gz"):
        shutil.copy(path, out / path.name)


def cifar(source: Path, out: Path) -> None:
    """A folder of images for each class, in and out."""
    for folder in sorted(source.iterdir()):
        (out / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:EACH]:
            shutil.copy(path, out / folder.name / path.name)


if __name__ == "__main__":
    fashion_source, cifar_source, target = map(Path, sys.argv[1:])
    fashion(fashion_source, target / "fashion")
    cifar(cifar_source, target / "cifar10")
