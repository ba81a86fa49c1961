"""Which images are learned from, chosen by and judged by."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidi.data.hashing import Hashes, draws, mixed
from vidi.errors import DataError
from vidi.facts import SPLITS

TRAIN, VALIDATION, TEST = range(len(SPLITS))

DEFAULT_VALIDATION_FRACTION: Final = 0.1
# More held-out images than these, and of each class, are worth more to learn from: with half as
# many images, learnt by heart, a network errs a third more often (docs/measurements.md).
ENOUGH_VALIDATION: Final = 2_500
ENOUGH_OF_A_CLASS: Final = 10
DEFAULT_TEST_FRACTION: Final = 0.2

# What people call the splits, in lower case.
SPLIT_NAMES: Final = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "dev": VALIDATION,
    "test": TEST,
    "testing": TEST,
}

Labels = NDArray[np.int64]
Splits = NDArray[np.int8]
Groups = NDArray[np.int64]


class SplitRule(NamedTuple):
    """What was asked for; None means vidi's default."""

    validation_fraction: float | None
    test_fraction: float | None
    seed: int
    # For cross-validation: fold number `fold` of `folds`, from 1 on, is for validation.
    folds: int | None = None
    fold: int = 1
    # What is held out to choose by is put back when all is cut: the test rows stay the same.
    learn_validation: bool = False


# Rows whose numbers are computed at a time.
_AT_ONCE: Final = 1 << 20

DEFAULT_RULE: Final = SplitRule(None, None, 0)


def stratified(
    labels: Labels, order: Hashes, *, fraction: float, groups: Groups | None = None
) -> NDArray[np.bool_]:
    """Hold out `fraction` of the rows, the same share of every class; (N,) bool, True is held out.

    The total is exact: round(N * fraction), and what does not divide goes to the classes with the
    largest remainder. Every class keeps at least one row, so a class of one row loses none. Rows
    of a class are held out in ascending `order`, a hash of their names, so an image keeps its side
    when others are added.

    groups: (N,); rows with the same number from 0 up stay on one side, -1 is a row by itself. Then
    the total is as exact as the groups allow.
    """
    held_out = np.zeros(len(labels), dtype=np.bool_)
    if not len(labels) or fraction <= 0:
        return held_out
    counts = np.bincount(labels)
    quota = _quota(counts, fraction)
    alone = np.ones(len(labels), dtype=np.bool_)
    if groups is not None and (groups >= 0).any():
        alone = _alone(groups)
        held_out |= _whole_groups(labels, order, groups, alone, quota)
        quota = np.maximum(quota - np.bincount(labels[held_out], minlength=len(counts)), 0)
    left = counts - np.bincount(labels[held_out], minlength=len(counts))
    quota = np.minimum(quota, left - 1)
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels[alone], minlength=len(counts)))])
    if alone.all():
        keys = _class_keys(labels, order)
        # Of ten million rows the caller's copies are 160 MB, and nobody else may have them.
        del labels, order
        rows = np.argsort(keys, kind="stable")
    else:
        rows = np.flatnonzero(alone)
        rows = rows[np.argsort(_class_keys(labels[rows], order[rows]), kind="stable")]
    for number in np.flatnonzero(quota > 0).tolist():
        first, end = int(starts[number]), int(starts[number + 1])
        held_out[rows[first : min(end, first + int(quota[number]))]] = True
    return held_out


def _class_keys(labels: Labels, order: Hashes) -> Hashes:
    """(N,), ascending class by class, and in each by `order`.

    One sort of numbers that begin with the class takes half the time of two sorts. What that cuts
    off the end of a hash of 64 bits decides nothing.
    """
    bits = max(1, int(labels.max(initial=0)).bit_length())
    shift = np.uint64(64 - bits)
    # In place: ten million rows are 80 MB.
    keys = labels.astype(np.uint64)
    keys <<= shift
    for start in range(0, len(keys), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        keys[part] |= order[part] >> np.uint64(bits)
    return keys


def _quota(counts: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """How many rows of each class are held out."""
    exact = counts * fraction
    whole = np.floor(exact + 1e-9)
    room = np.maximum(counts - 1, 0)
    quota: NDArray[np.int64] = np.minimum(whole.astype(np.int64), room)
    missing = min(int(counts.sum() * fraction + 0.5), int(room.sum())) - int(quota.sum())
    # Ties are broken by class order, so that the result is a function of the arguments.
    by_remainder = np.argsort(whole - exact, kind="stable")
    while missing > 0:
        for number in by_remainder:
            if missing > 0 and quota[number] < room[number]:
                quota[number] += 1
                missing -= 1
    return quota


def _alone(groups: Groups) -> NDArray[np.bool_]:
    """True for rows in no group, or in a group of one."""
    _, number, size = np.unique(groups, return_inverse=True, return_counts=True)
    return np.asarray((groups < 0) | (size[number] == 1))


def _whole_groups(
    labels: Labels,
    order: Hashes,
    groups: Groups,
    alone: NDArray[np.bool_],
    quota: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Groups that are held out: the largest first, each where it brings the classes nearer."""
    held_out = np.zeros(len(labels), dtype=np.bool_)
    members: dict[int, list[int]] = {}
    for row in np.flatnonzero(~alone).tolist():
        members.setdefault(int(groups[row]), []).append(row)
    rows_of = [np.array(rows) for rows in members.values()]
    rows_of.sort(key=lambda rows: (-len(rows), int(order[rows].min())))
    total = np.bincount(labels)
    # A group is as likely to be held out as an image: not all of the large ones go to one side.
    share = quota.sum() / len(labels)
    taken = np.zeros(len(quota), dtype=np.int64)
    seen = 0
    for rows in rows_of:
        mine = np.bincount(labels[rows], minlength=len(quota))
        seen += len(rows)
        behind = taken.sum() + len(rows) / 2 <= seen * share
        nearer = np.abs(quota - taken - mine).sum() < np.abs(quota - taken).sum()
        if behind and nearer and ((taken + mine < total) | (mine == 0)).all():
            held_out[rows] = True
            taken += mine
    return held_out


def complete(
    given: Splits,
    labels: Labels,
    hashes: Hashes,
    rule: SplitRule,
    groups: Groups | None = None,
) -> tuple[Splits, str]:
    """Cut what is missing out of the training rows; returns the splits and the rule in words.

    Of folds, all rows that are not for the test are part, also those given for validation.
    """
    split = given.copy()
    has = [bool((given == number).any()) for number in range(len(SPLITS))]
    words = ["given: " + ", ".join(SPLITS[n] for n in range(len(SPLITS)) if has[n])]
    if not has[VALIDATION] and not has[TEST]:
        words = ["not split by its owner"]
    whole = int((given == TRAIN).sum())
    grouped = ", groups kept together" if groups is not None and (groups >= 0).any() else ""

    def cut(target: int, share: float) -> None:
        trained = split == TRAIN
        # All rows are not copied to be all rows.
        rows = slice(None) if trained.all() else np.flatnonzero(trained)
        # Each split is drawn in an order of its own, else the first images in line for one would be
        # the first in line for the other.
        out = stratified(
            labels[rows],
            draws(hashes[rows], rule.seed * len(SPLITS) + target),
            fraction=min(1.0, share * whole / int(trained.sum())),
            groups=None if groups is None else groups[rows],
        )
        split[np.flatnonzero(trained)[out]] = target
        words.append(
            f"{SPLITS[target]} {_percent(share)} of training, stratified, seed {rule.seed}{grouped}"
            if out.any()
            else f"no {SPLITS[target]}: too few images"
        )

    if not has[TEST]:
        if has[VALIDATION] and rule.test_fraction is None:
            words.append("no test split")
        else:
            asked = rule.test_fraction
            share = DEFAULT_TEST_FRACTION if asked is None else asked
            if share > 0:
                cut(TEST, share)
    if rule.folds is not None:
        rows = np.flatnonzero(split != TEST)
        places = folds(
            labels[rows],
            draws(hashes[rows], rule.seed * len(SPLITS) + VALIDATION),
            rule.folds,
            groups=None if groups is None else groups[rows],
        )
        split[rows] = np.where(places == rule.fold - 1, VALIDATION, TRAIN)
        words.append(
            f"validation is fold {rule.fold} of {rule.folds}, stratified, seed {rule.seed}{grouped}"
        )
    elif not has[VALIDATION]:
        asked = rule.validation_fraction
        share = _default_share(labels, whole) if asked is None else asked
        if share > 0:
            cut(VALIDATION, share)
    if rule.learn_validation:
        split[split == VALIDATION] = TRAIN
        words.append("validation images are learnt from")
    return split, "; ".join(words)


def _percent(share: float) -> str:
    """15%, 0.03%."""
    return f"{share:.0%}" if share >= 0.01 else f"{100 * share:.1g}%"


def _default_share(labels: Labels, num_train: int) -> float:
    """Of the training rows, held out to choose by."""
    num_classes = int(labels.max(initial=0)) + 1
    enough = max(ENOUGH_VALIDATION, ENOUGH_OF_A_CLASS * num_classes)
    return min(DEFAULT_VALIDATION_FRACTION, enough / max(1, num_train))


def folds(
    labels: Labels, order: Hashes, count: int, *, groups: Groups | None = None
) -> NDArray[np.int64]:
    """(N,): the fold of each row, 0 to count - 1; every class is spread as evenly as it can be.

    Rows of one group are in one fold, and go to where their classes are rarest.
    """
    if not 2 <= count <= len(labels):
        raise DataError(
            f"{len(labels)} images cannot be cut into {count} folds",
            fix="ask for 2 folds or more, and no more than there are images",
        )
    fold = np.full(len(labels), -1, dtype=np.int64)
    sizes = np.zeros((count, int(labels.max()) + 1), dtype=np.int64)
    alone = np.ones(len(labels), dtype=np.bool_) if groups is None else _alone(groups)
    if groups is not None:
        members: dict[int, list[int]] = {}
        for row in np.flatnonzero(~alone).tolist():
            members.setdefault(int(groups[row]), []).append(row)
        for together in sorted(members.values(), key=lambda m: (-len(m), int(order[m[0]]))):
            mine = np.bincount(labels[together], minlength=sizes.shape[1])
            into = int(np.lexsort((sizes.sum(axis=1), sizes @ mine))[0])
            fold[together] = into
            sizes[into] += mine
    for number in range(sizes.shape[1]):
        rows = np.flatnonzero((labels == number) & alone)
        rows = rows[np.argsort(order[rows], kind="stable")]
        while len(rows):
            # One to each fold, smallest first; to the ones that groups left behind until all agree.
            behind = sizes[:, number] == sizes[:, number].min()
            turn = np.lexsort((np.arange(count), sizes.sum(axis=1)))
            turn = turn[behind[turn]][: len(rows)]
            rounds = len(rows) // count if behind.all() else 1
            block, rows = np.split(rows, [max(rounds, 1) * len(turn)])
            fold[block] = np.resize(turn, len(block))
            sizes[:, number] += np.bincount(fold[block], minlength=count)
    return fold


def number_hashes(count: int, salt: int) -> Hashes:
    """What `hash_texts` is to names, for rows that have only a number."""
    return mixed(
        np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15 + 2 * salt)
    )
