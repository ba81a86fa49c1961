"""Which images are learned from, chosen by and judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vidi.facts import SPLITS

TRAIN, VALIDATION, TEST = range(len(SPLITS))

DEFAULT_VALIDATION_FRACTION = 0.1
DEFAULT_TEST_FRACTION = 0.2


def stratified(
    labels: NDArray[np.int64],
    names: Callable[[int], str],
    *,
    fraction: float,
    seed: int,
) -> NDArray[np.bool_]:
    """Hold out `fraction` of the rows, the same share of every class; (N,) bool, True is held out.

    The total is exact: round(N * fraction), and what does not divide goes to the classes with the
    largest remainder. Every class keeps at least one row, so a class of one row loses none. Which
    rows of a class are held out depends only on the seed and their names, so an image keeps its
    side when others are added.
    """
    held_out = np.zeros(len(labels), dtype=np.bool_)
    if not len(labels) or fraction <= 0:
        return held_out
    counts = np.bincount(labels)
    exact = counts * fraction
    room = np.maximum(counts - 1, 0)
    quota = np.minimum(np.floor(exact + 1e-9).astype(np.int64), room)
    missing = min(int(len(labels) * fraction + 0.5), int(room.sum())) - int(quota.sum())
    # Ties are broken by class order, so that the result is a function of the arguments.
    by_remainder = np.argsort(-(exact - np.floor(exact + 1e-9)), kind="stable")
    while missing > 0:
        for number in by_remainder:
            if missing > 0 and quota[number] < room[number]:
                quota[number] += 1
                missing -= 1
    order = np.array([_draw(seed, names(row)) for row in range(len(labels))], dtype=np.uint64)
    for number in np.flatnonzero(quota):
        rows = np.flatnonzero(labels == number)
        first = np.argsort(order[rows], kind="stable")[: quota[number]]
        held_out[rows[first]] = True
    return held_out


def _draw(seed: int, name: str) -> int:
    key = f"{seed}\0{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")


def complete(
    given: NDArray[np.int8],
    labels: NDArray[np.int64],
    names: Callable[[int], str],
    *,
    validation_fraction: float | None,
    test_fraction: float | None,
    seed: int,
) -> tuple[NDArray[np.int8], str]:
    """Cut what is missing out of the training rows; returns the splits and the rule in words."""
    split = given.copy()
    has = [bool((given == number).any()) for number in range(len(SPLITS))]
    rules = ["given: " + ", ".join(SPLITS[n] for n in range(len(SPLITS)) if has[n])]
    if not has[VALIDATION] and not has[TEST]:
        rules = ["not split by its owner"]

    def cut(target: int, share: float) -> None:
        rows = np.flatnonzero(split == TRAIN)
        # The test split is drawn by another seed than the validation split, else the first images
        # in line for one would be first in line for the other.
        out = stratified(
            labels[rows],
            lambda row: names(int(rows[row])),
            fraction=share * len(split[given == TRAIN]) / len(rows),
            seed=seed * len(SPLITS) + target,
        )
        split[rows[out]] = target
        rules.append(
            f"{SPLITS[target]} {share:.0%} of training, stratified, seed {seed}"
            if out.any()
            else f"no {SPLITS[target]}: too few images"
        )

    if not has[TEST]:
        if has[VALIDATION] and test_fraction is None:
            rules.append("no test split")
        else:
            share = DEFAULT_TEST_FRACTION if test_fraction is None else test_fraction
            if share > 0:
                cut(TEST, share)
    if not has[VALIDATION]:
        share = DEFAULT_VALIDATION_FRACTION if validation_fraction is None else validation_fraction
        if share > 0:
            cut(VALIDATION, share)
    return split, "; ".join(rules)
