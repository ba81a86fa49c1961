"""What stands out in a run and what to do about it: plain rules, each one a sentence on the page.

A rule speaks only where the numbers carry it: a class is called worse when its interval says so,
probabilities are called wrong when they are further off than a perfect model's would be.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from vidi.metrics import Evaluation
from vidi.report.data import ReportData
from vidi.words import between, count, quoted, share, without_places

Level = Literal["bad", "watch", "fine"]

# Half an interval wider than this is worth a word: below 3 points most decisions can be made.
_WIDE = 0.03
# A class that goes to one other class less often than this is not mixed up with it.
_OFTEN = 0.05


@dataclass(frozen=True)
class Finding:
    """`section` is the part of the page that shows it."""

    level: Level
    title: str
    detail: str
    section: str


@dataclass(frozen=True)
class Step:
    """Something to do next; `command` can be typed as it stands, in the folder of the runs."""

    title: str
    detail: str
    section: str = ""
    command: str = ""


def findings(data: ReportData) -> list[Finding]:
    """What is wrong, the worst first; one "fine" entry when nothing is."""
    found = [*_of_evaluation(data), *_of_data(data), *_of_training(data)]
    if not found:
        return [
            Finding(
                "fine",
                "Nothing stands out",
                "No class is clearly worse than the rest, and the probabilities can be believed.",
                "trust",
            )
        ]
    return sorted(found, key=lambda finding: finding.level != "bad")


def steps(data: ReportData) -> list[Step]:
    """What to do next, at most four."""
    return [*_steps(data)][:4]


def _of_evaluation(data: ReportData) -> Iterator[Finding]:
    judged = data.evaluation
    if judged is None:
        yield Finding("bad", "Not judged yet", "No split of this run was evaluated.", "curves")
        return
    if not judged.complete:
        missing = judged.n_expected - judged.n_evaluated
        yield Finding(
            "bad",
            f"{count(missing, 'image')} of {judged.n_expected:,} not judged",
            " ".join(judged.notes),
            "data",
        )
    if judged.n_leaked:
        beside = judged.without_leaked
        detail = "They also stand in another split, so the model may have seen them."
        if beside is not None:
            around = between(beside.accuracy_interval)
            detail += f" Without them: {share(beside.accuracy)} ({around})."
        yield Finding("bad", f"{count(judged.n_leaked, 'image')} leaked", detail, "data")
    if judged.split != "test":
        yield Finding(
            "watch",
            f"Judged on the {judged.split} images",
            "They also chose the best step, so the number is a little flattering. "
            "There is no test split.",
            "data",
        )
    yield from _of_classes(judged)
    if judged.ece > judged.ece_noise:
        sure = judged.mean_confidence > judged.accuracy
        yield Finding(
            "watch",
            "Too sure of itself" if sure else "Right more often than it says",
            f"It says {share(judged.mean_confidence)} on average and is right in "
            f"{share(judged.accuracy)}. {_mended(judged)}",
            "trust",
        )
    low, high = judged.accuracy_interval
    if (high - low) / 2 > _WIDE:
        yield Finding(
            "watch",
            f"Only {count(judged.n_evaluated, f'{judged.split} image')}",
            f"That leaves {100 * (high - low) / 2:.1f} points to either side.",
            "trust",
        )


def _mended(judged: Evaluation) -> str:
    calibration = judged.calibration
    if calibration is None or calibration.ece >= judged.ece:
        return "Rankings are fine; the probabilities are off."
    return (
        f"Dividing the logits by {calibration.temperature.value:.2f} (fitted on "
        f"{calibration.temperature.fitted_on}) brings the calibration error from "
        f"{share(judged.ece)} to {share(calibration.ece)}."
    )


def _of_classes(judged: Evaluation) -> Iterator[Finding]:
    worst = judged.worst_class
    if judged.worst_class_chance < 0.05:
        yield Finding(
            "bad",
            f"{quoted(worst.name)} is clearly worse",
            f"{share(worst.accuracy)} of its {count(worst.n, 'image')} are found "
            f"({between(worst.accuracy_interval)}), {share(judged.accuracy)} of all.",
            "classes",
        )
    for pair in judged.most_confused[:1]:
        if pair.n >= 3 and pair.share >= _OFTEN:
            label, predicted = judged.classes[pair.label], judged.classes[pair.predicted]
            n_label = judged.per_class[pair.label].n
            yield Finding(
                "watch",
                f"{quoted(label)} is taken for {quoted(predicted)}",
                f"{pair.n:,} of {count(n_label, 'image')} ({share(pair.share)}); the most frequent "
                "mix-up.",
                "confusion",
            )
    absent = [score.name for score in judged.per_class if score.n == 0]
    if absent:
        shown = ", ".join(map(quoted, absent[:3])) + (", \u2026" if absent[3:] else "")
        yield Finding(
            "watch",
            f"{count(len(absent), 'class', 'classes')} without an image",
            f"{shown}: nothing is known about them; averages are over the other "
            f"{judged.macro_classes:,}.",
            "classes",
        )


def _of_data(data: ReportData) -> Iterator[Finding]:
    dataset = data.facts.dataset
    if (before := data.replaced) is not None:
        yield Finding(
            "watch",
            "Learnt from the validation images as well",
            f"The recipe and the epochs of {before.name}, which had {share(before.accuracy)} of "
            f"{count(before.n, 'validation image')} right. Whether this run is better than it, "
            "nothing was left to tell; its temperature is that one's.",
            "data",
        )
    if dataset.quarantined:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(dataset.quarantined.items()))
        total = sum(dataset.quarantined.values())
        yield Finding("watch", f"{count(total, 'file')} could not be used", f"{reasons}.", "data")
    for each in (data.audit or {}).get("findings", ()):
        # What is wrong with labels; leaked images are spoken of with the accuracy.
        if each["severity"] == "error" and each["code"] == "CONFLICT":
            yield Finding(
                "bad",
                f"{count(each['count'], 'image')} in more than one class",
                without_places(f"{each['message']}."),
                "data",
            )
    counts = [n for n in dataset.counts.get("train", ()) if n]
    if counts and max(counts) >= 10 * min(counts):
        yield Finding(
            "watch",
            "Classes of very different size",
            f"From {min(counts):,} to {count(max(counts), 'training image')}: look at the macro "
            "averages, not only at the accuracy.",
            "data",
        )


def _of_training(data: ReportData) -> Iterator[Finding]:
    validations = [each for each in data.records if each.get("kind") == "validation"]
    trained = [each for each in data.records if each.get("kind") == "train"]
    if not validations or not trained:
        return
    best = max(validations, key=lambda each: each["accuracy"])
    seen = trained[-1].get("accuracy")
    if seen is not None and seen - best["accuracy"] > 0.1:
        yield Finding(
            "watch",
            "Learnt by heart",
            f"{share(seen)} on the images it trained on, {share(best['accuracy'])} on others.",
            "curves",
        )
    if _still_learning(validations):
        yield Finding(
            "watch",
            "Still getting better at the end",
            "The validation loss was falling when training stopped.",
            "curves",
        )


def _still_learning(validations: list[Any]) -> bool:
    losses = [each["log_loss"] for each in validations if each.get("log_loss") is not None]
    # One per cent an evaluation: less is the tail of every schedule that ends at zero.
    return len(losses) >= 3 and losses[-1] < 0.99 * losses[-2] < 0.99 * 0.99 * losses[-3]


def _steps(data: ReportData) -> Iterator[Step]:
    judged = data.evaluation
    if judged is None:
        yield Step(
            "Judge it",
            "Every number here needs held-out images.",
            "",
            f"vidi evaluate {shlex.quote(data.name)}",
        )
        return
    wrong = judged.n_evaluated - round(judged.accuracy * judged.n_evaluated)
    if wrong:
        yield Step(
            f"Look at the {count(wrong, 'mistake')}" if wrong > 1 else "Look at the mistake",
            "The most confident come first. Where the label is wrong and not the model, correct "
            "the label and train again.",
            "mistakes",
        )
    worst = judged.worst_class
    if judged.worst_class_chance < 0.05:
        label = judged.classes.index(worst.name)
        n_train = data.facts.dataset.counts["train"][label]
        yield Step(
            f"Add images of {quoted(worst.name)}",
            f"It has {count(n_train, 'training image')}; no other class would gain as much.",
            "data",
        )
    if _still_learning([each for each in data.records if each.get("kind") == "validation"]):
        epochs = max(1, round(2 * data.plan.num_epochs))
        yield Step(
            "Train longer",
            "It had not finished learning.",
            "curves",
            f"vidi train DATA --set train.epochs={epochs}",
        )
    low, high = judged.accuracy_interval
    if (high - low) / 2 > _WIDE:
        yield Step(
            f"Judge on {4 * judged.n_evaluated:,} images",
            "Four times as many halve the interval.",
            "data",
        )
    yield Step(
        "Use it",
        "Any image file in, the class and its probability out; said in the folder that this run "
        "is in.",
        "",
        f"vidi predict {shlex.quote(data.name)} photo.jpg",
    )
