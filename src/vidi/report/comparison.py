"""Runs against one another as one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vidi.metrics import Comparison, Evaluation
from vidi.report.page import COMPARISON, assemble


def render_comparison(
    names: Sequence[str],
    split: str,
    evaluations: Sequence[Evaluation],
    found: Sequence[Comparison],
) -> str:
    """The page as text: `found[i]` holds run i + 1 against run 0."""
    first = evaluations[0]
    views: dict[str, Any] = {
        "summary": {"first": names[0], "split": split, "n": first.n_evaluated},
        "pairs": {
            "first": names[0],
            "pairs": [
                _pair(name, each, first, evaluation)
                for name, each, evaluation in zip(names[1:], found, evaluations[1:], strict=True)
            ],
        },
    }
    views["pairs"]["n"] = first.n_evaluated
    return assemble(views, title=f"{names[0]} compared \u00b7 vidi", kind=COMPARISON)


def _pair(name: str, pair: Comparison, first: Evaluation, other: Evaluation) -> dict[str, Any]:
    return {
        "run": name,
        "verdict": pair.verdict,
        # The page says the verdict above it.
        "sentence": pair.sentence.removeprefix(f"{pair.verdict}: "),
        "difference": pair.difference,
        "interval": list(pair.difference_interval),
        "accuracy_a": pair.accuracy_a,
        "accuracy_b": pair.accuracy_b,
        "only_a": pair.only_a_right,
        "only_b": pair.only_b_right,
        "both_right": pair.both_right,
        "both_wrong": pair.both_wrong,
        "p_value": pair.p_value,
        "smallest": pair.smallest_difference,
        "classes": [
            {"name": a.name, "n": a.n, "a": a.recall, "b": b.recall}
            for a, b in zip(first.per_class, other.per_class, strict=True)
            if a.recall is not None and b.recall is not None
        ],
    }
