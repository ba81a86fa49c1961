"""What several commands print."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from vidi.words import chance, count

if TYPE_CHECKING:
    from vidi.metrics import Evaluation
    from vidi.run import Run


def evaluation_of(run: Run) -> Evaluation:
    """How a run was judged: by its test images where it has some, else by the validation images."""
    from vidi.metrics import Evaluation

    split = "test" if "test" in run.evaluated_splits() else "validation"
    return Evaluation.model_validate_json(run.read_evaluation(split))


def shortly(evaluation: Evaluation) -> dict[str, Any]:
    """What the JSON of every command that trains says of its answer."""
    return {
        "split": evaluation.split,
        "accuracy": evaluation.accuracy,
        "accuracy_interval": evaluation.accuracy_interval,
        "n_evaluated": evaluation.n_evaluated,
    }


def print_evaluation(evaluation: Evaluation, how: str = "") -> None:
    low, high = evaluation.accuracy_interval
    split = {"test": "test", "validation": "validation (used to choose the weights: optimistic)"}
    name = split.get(evaluation.split, evaluation.split)
    typer.echo(
        f"{how}{name} accuracy {evaluation.accuracy:.2%} "
        f"(95 % interval {low:.2%} to {high:.2%}, {count(evaluation.n_evaluated, 'image')})"
    )
    if evaluation.n_evaluated != evaluation.n_expected:
        missing = evaluation.n_expected - evaluation.n_evaluated
        typer.echo(f"{missing:,} images of that split could not be read and are not counted")
    if evaluation.n_leaked:
        beside = evaluation.without_leaked
        text = f"{evaluation.n_leaked:,} of those images can also be seen in training"
        if beside is not None:
            low, high = beside.accuracy_interval
            text += f"; without them {beside.accuracy:.2%} ({low:.2%} to {high:.2%})"
        typer.echo(text)
    if is_chance(evaluation):
        typer.echo(chance(evaluation.majority_accuracy))


def is_chance(evaluation: Evaluation) -> bool:
    """Whether whoever always names the largest class is right as often."""
    return evaluation.accuracy <= evaluation.majority_accuracy


def print_json(value: Any, *, indent: int | None = 2) -> None:
    typer.echo(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False))


def printable(text: str) -> str:
    """Names come from the user's disk: control characters would drive the terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
