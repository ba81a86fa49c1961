"""The page of an ablation: what its first screen says, and the effects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from vidi.effects import ALPHA, BASE
from vidi.report.importance import worded
from vidi.report.study_data import (
    StudyData,
    View,
    finding,
    median,
    num_validation,
    short,
    shorts,
    step_to,
)
from vidi.words import count, public, share, without_places

# The base's accuracies lie closer together than this where training goes well.
_UNSTEADY: Final = 0.1


def effects_view(data: StudyData) -> View:
    rows = []
    for effect in data.effects:
        known = effect.estimate
        rows.append(
            {
                "factor": effect.factor,
                "level": without_places(effect.level),
                "settings": {str(k): worded(v) for k, v in public(dict(effect.settings)).items()},
                "verdict": effect.verdict,
                "seeds": effect.seeds,
                "failed": effect.failed,
                "reason": without_places(effect.reason),
                "accuracy": short(effect.accuracy),
                "base_accuracy": short(effect.base_accuracy),
                "differences": shorts(effect.differences),
                "difference": short(known.difference) if known else None,
                "interval": shorts(known.interval) if known else None,
                "wide": shorts(known.wide) if known else None,
                "p_value": short(known.p_value) if known else None,
                "p_adjusted": short(known.p_adjusted) if known else None,
                "from_seeds": short(known.from_seeds) if known else None,
                "from_images": short(known.from_images) if known else None,
                "log_loss": short(effect.log_loss),
                "seconds": short(effect.seconds),
            }
        )
    judged = sum(1 for effect in data.effects if effect.estimate)
    return {
        "rows": rows,
        "base": {str(k): worded(v) for k, v in public(dict(data.asked.get("base", {}))).items()},
        "seeds": data.asked.get("seeds"),
        "n": num_validation(data),
        "alpha": ALPHA,
        "judged": judged,
        "by_chance": short(judged * ALPHA),
    }


def headline(data: StudyData) -> View:
    """The largest gain, or loss, that is there for certain, or that none is."""
    sure = [each for each in data.effects if each.verdict in ("helps", "hurts")]
    # The largest gain, and only where nothing helps the largest loss.
    sure.sort(
        key=lambda each: (
            each.verdict != "helps",
            -abs(each.estimate.difference) if each.estimate else 0.0,
        )
    )
    judged = sum(1 for each in data.effects if each.estimate)
    return {
        "helps": sum(1 for each in sure if each.verdict == "helps"),
        "hurts": sum(1 for each in sure if each.verdict == "hurts"),
        "judged": judged,
        "planned": len(data.effects),
        "largest": [
            {
                "name": f"{each.factor}: {without_places(each.level)}",
                "difference": short(each.estimate.difference),
                "interval": shorts(each.estimate.interval),
            }
            for each in sure[:1]
            if each.estimate
        ],
        "sentence": (
            f"Each change alone, {data.asked.get('seeds')} seeds paired with the base"
            + (f", {n:,} validation images" if (n := num_validation(data)) else "")
            + ". Said to be there only when the chance of any false alarm among all of them is "
            "below 5% (Holm)."
        ),
    }


def tried(data: StudyData) -> list[View]:
    said = [*_unsteady(data)]
    for verdict, level in (("helps", "fine"), ("hurts", "bad")):
        found = [each for each in data.effects if each.verdict == verdict]
        found.sort(key=lambda each: -abs(each.estimate.difference) if each.estimate else 0.0)
        for each in found[:3]:
            assert each.estimate is not None
            low, high = each.estimate.interval
            said.append(
                finding(
                    level,
                    f"{_capital(each.factor)}: {without_places(each.level)} {verdict}",
                    f"{100 * each.estimate.difference:+.1f} points, "
                    f"{100 * low:+.1f} to {100 * high:+.1f}.",
                    "effects",
                )
            )
    unclear = [each for each in data.effects if each.verdict == "cannot tell" and each.estimate]
    if unclear:
        widest = sorted(
            (e.estimate.interval[1] - e.estimate.interval[0]) / 2 for e in unclear if e.estimate
        )
        said.append(
            finding(
                "watch",
                f"{count(len(unclear), 'change')} of which nothing can be said",
                f"Effects below about {100 * median(widest):.1f} points do not show with so few "
                "seeds and images.",
                "effects",
            )
        )
    left = [each for each in data.effects if not each.estimate and not each.failed]
    if left:
        names = ", ".join(dict.fromkeys(each.factor for each in left))
        said.append(
            finding(
                "watch",
                f"{count(len(left), 'change')} not tried",
                f"The time did not allow: {without_places(names)}.",
                "effects",
            )
        )
    return said


def _unsteady(data: StudyData) -> list[View]:
    """A base that some seeds spoil: nothing can be held against it."""
    known = [
        trial.last.accuracy
        for trial in data.trials[: int(data.asked.get("seeds") or 0)]
        if trial.last and trial.origin == BASE
    ]
    if len(known) < 2 or max(known) - min(known) < _UNSTEADY:
        return []
    return [
        finding(
            "bad",
            "The base itself is unsteady",
            f"From {share(min(known))} to {share(max(known))} by the seed alone. Give it a smaller "
            "learning rate or a warm-up before asking what helps.",
            "trials",
        )
    ]


def next_steps(data: StudyData) -> Iterable[View]:
    helping = [each for each in data.effects if each.verdict == "helps"]
    helping.sort(key=lambda each: -each.estimate.difference if each.estimate else 0.0)
    if helping:
        best = helping[0]
        settings = " ".join(f"--set {k}={_toml(v)}" for k, v in best.settings.items())
        yield step_to(
            f"Use {best.factor}: {without_places(best.level)}",
            "The largest gain that is there for certain. Gains do not simply add up: change one, "
            "then look again from there.",
            "effects",
            f"vidi train DATA {settings}",
        )
    if any(each.verdict == "cannot tell" and each.estimate for each in data.effects):
        seeds = int(data.asked.get("seeds") or 3)
        yield step_to(
            "Ask about fewer changes with more seeds",
            "Four times as many seeds halve the part of an interval that seeds make.",
            "effects",
            f"vidi ablate DATA --factors NAME --seeds {4 * seeds}",
        )
    yield step_to(
        "Try it at full length",
        "Runs were short. What helps in long ones (averages, strong augmentation) shows less here.",
        "trials",
    )


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
