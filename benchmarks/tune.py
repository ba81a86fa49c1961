"""How soon a search is as good as random search is after N full trainings.

    python benchmarks/tune.py CIFAR10 --images 5000 --trainings 20 --out tune.json
    python benchmarks/tune.py CIFAR10 --images 1000 --trainings 12 --epochs 3 --seeds 1 \
        --model small_cnn --strategies asha,optuna            # a first look
    python benchmarks/tune.py photos --image-px 128 --space tuning --epochs 3 \
        --model efficientnet_lite0 --curve tune.svg           # fine-tuning, drawn
    python benchmarks/tune.py digits --trainings 4 --epochs 2      # to see that it works

Random search trains N configs to the end, one after another. The others search the same space from
the same first trial, until they are as good on validation or have taken as long: ours with each way
of promoting, and Optuna's TPE with its Hyperband pruner around the same trials, in one process that
is warm as well. Also said: how well the ranking at each rung agrees with that at the end, on the
random trials, with flat learning rates and with `--schedule cosine`.

With the defaults this takes hours; nothing runs it by itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import optuna
from scipy.stats import spearmanr

import vidi
from vidi.config import Config
from vidi.space import Distribution, Space, choice, log_uniform, uniform
from vidi.study import Study
from vidi.train.trial import Shared, advance

SPACE = Space.of(
    {
        "train.learning_rate": log_uniform(6e-3, 0.3),
        "train.weight_decay": log_uniform(0.02, 2.0),
        "train.batch_size": choice(32, 64, 128),
        "train.label_smoothing": uniform(0.0, 0.2),
        "model.dropout": uniform(0.0, 0.4),
        "augment.policy": choice("none", "light", "medium"),
        "augment.cutmix_alpha": choice(0.0, 1.0),
    }
)
# Around what vidi does by itself with a pretrained network.
TUNING = Space.of(
    {
        "train.learning_rate": log_uniform(6e-5, 4e-3),
        "train.weight_decay": log_uniform(5e-3, 0.5),
        "train.batch_size": choice(16, 32, 64),
        "train.label_smoothing": uniform(0.0, 0.2),
        "train.layer_decay": choice(0.7, 0.85, 1.0),
        "augment.policy": choice("none", "light", "medium"),
    }
)
SPACES = {"scratch": SPACE, "tuning": TUNING}
SHARES = (1 / 9, 1 / 3, 1.0)
COLOURS = ("#888", "#06c", "#c60", "#083", "#a0a")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--images", type=int, help="take so many of the training images")
    parser.add_argument("--trainings", type=int, default=20)
    parser.add_argument("--epochs", type=float, default=15.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model")
    parser.add_argument("--image-px", type=int, help="side of the images; vidi's choice, if not")
    parser.add_argument("--space", choices=tuple(SPACES), default="scratch")
    parser.add_argument("--schedule", default="trapezoid")
    parser.add_argument("--strategies", default="asha,pasha,halving,optuna")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--curve", type=Path, help="draw best accuracy against seconds, as SVG")
    asked = parser.parse_args()
    settings: dict[str, Any] = {
        "train.epochs": asked.epochs,
        "train.schedule": asked.schedule,
        "train.warmup_fraction": 0.05,
        "data.build": "before",
    }
    if asked.model:
        settings["model.name"] = asked.model
    if asked.image_px:
        settings["data.image_px"] = asked.image_px
    config = Config().with_settings(settings)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="vidi-bench-") as folder:
        data = subset(asked.data, asked.images, Path(folder)) if asked.images else asked.data
        for seed in range(asked.seeds):
            results.append(_one_seed(data, config, asked, seed, Path(folder) / str(seed)))
            print(json.dumps(results[-1], indent=1), flush=True)
    wholes = [one["curves"]["random"][-1][0] for one in results]
    print(f"random search: {statistics.median(wholes):.0f} s for {asked.trainings} trainings")
    for name in ["random", *asked.strategies.split(",")]:
        times = [one["seconds"][name] for one in results]
        if all(found is not None for found in times):
            shares = [found / whole for found, whole in zip(times, wholes, strict=True)]
            print(
                f"{name:8} as good as that after {statistics.median(times):.0f} s, "
                f"{statistics.median(shares):.2f} of its time"
            )
        else:
            reached = sum(found is not None for found in times)
            print(f"{name:8} as good as that in {reached} of {len(times)}")
    if asked.out:
        asked.out.write_text(json.dumps(results, indent=1) + "\n")
    if asked.curve:
        asked.curve.write_text(picture([one["curves"] for one in results], Path(asked.data).name))


def _one_seed(
    data: str, config: Config, asked: argparse.Namespace, seed: int, folder: Path
) -> dict[str, Any]:
    space = SPACES[asked.space]
    random = vidi.tune(
        data,
        config,
        space=space,
        trials=asked.trainings,
        sampler="random",
        promotion="none",
        seed=seed,
        out=folder / "random",
    )
    curves = {"random": _curve(random)}
    goal, budget_s = curves["random"][-1][1], curves["random"][-1][0]
    for name in asked.strategies.split(","):
        if name == "optuna":
            until = (budget_s, goal)
            curves[name] = _optuna(data, config, space, seed, folder / name, until)
        else:
            study = vidi.tune(
                data,
                config,
                space=space,
                # Opening the data and judging the answer are not part of the comparison.
                minutes=(budget_s + 30) / 60,
                promotion=name,
                seed=seed,
                out=folder / name,
            )
            curves[name] = _curve(study)
    return {
        "seed": seed,
        "goal": goal,
        "seconds": {name: _reached(curve, goal) for name, curve in curves.items()},
        "curves": curves,
        "rank_correlation": _rank_correlation(random),
    }


def _curve(study: Study) -> list[tuple[float, float]]:
    """(seconds since the first trial began, best accuracy of a whole training)."""
    ends = {
        (trial.number, trial.rungs[-1].step)
        for trial in study.trials()
        if trial.status == "finished"
    }
    began_at, best, curve = 0.0, 0.0, []
    for event in study.events.read():
        if event["event"] == "started" and not began_at:
            began_at = event["at"]
        ended = event["event"] == "judged" and (event["trial"], event["step"]) in ends
        if ended or event["event"] == "answered":
            best = max(best, event["accuracy"])
            curve.append((event["at"] - began_at, best))
    return curve


def _reached(curve: Sequence[tuple[float, float]], goal: float) -> float | None:
    return next((seconds for seconds, accuracy in curve if accuracy >= goal), None)


def _optuna(
    data: str, config: Config, space: Space, seed: int, folder: Path, until: tuple[float, float]
) -> list[tuple[float, float]]:
    """TPE with Hyperband as Optuna's examples do it: a pruned trial is gone for good.

    until: seconds, and the accuracy at which it is done before.
    """
    budget_s, goal = until
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.HyperbandPruner(
        min_resource=1, max_resource=len(SHARES), reduction_factor=3
    )
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner
    )
    best = 0.0
    curve: list[tuple[float, float]] = []
    with Shared(data, config) as shared:
        plan = shared.looked(config).plan
        study.enqueue_trial(
            {axis.label: nearest(axis.distribution, plan.setting(axis.name)) for axis in space}
        )
        began_at = time.monotonic()
        while time.monotonic() - began_at < budget_s and best < goal:
            trial = study.ask()
            settings = {axis.name: _asked(trial, axis) for axis in space}
            # The first is the default itself; the sampler is told what lies nearest to it.
            own = config.with_settings(settings) if trial.number else config
            for rung in range(len(SHARES)):
                path = folder / f"{trial.number:04d}"
                result = advance(path, shared, own, rung=rung, rungs=SHARES)
                assert result.accuracy is not None
                trial.report(result.accuracy, rung + 1)
                if not result.finished and trial.should_prune():
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    break
            else:
                study.tell(trial, result.accuracy)
                best = max(best, result.accuracy or 0.0)
                curve.append((time.monotonic() - began_at, best))
            shutil.rmtree(path, ignore_errors=True)
    return curve


def nearest(one: Distribution, value: Any) -> Any:
    """The value, or what lies nearest to it in a distribution; its first where that is unknown."""
    if one.contains(value):
        return value
    if one.kind == "choice" or value is None:
        return one.at(0.0)
    return min(one.high, max(one.low, value))


def _asked(trial: optuna.Trial, axis: Any) -> Any:
    one = axis.distribution
    if one.kind == "choice":
        return trial.suggest_categorical(axis.label, one.values)
    return trial.suggest_float(axis.label, one.low, one.high, log=one.is_log)


def _rank_correlation(study: Study) -> dict[str, float]:
    """Spearman's, of what trials were worth at each rung and at the end of a whole training."""
    table: list[list[float]] = []
    for trial in study.trials():
        if trial.status == "finished":
            records = study.trial_run(trial.number).metrics.read()
            table.append([one["accuracy"] for one in records if one["kind"] == "validation"])
    columns = list(zip(*table, strict=True))
    return {
        f"{share:.0%}": float(spearmanr(column, columns[-1]).statistic)
        for share, column in zip(SHARES[:-1], columns, strict=False)
        if len(table) > 2
    }


def picture(curves: Sequence[Mapping[str, Sequence[tuple[float, float]]]], title: str) -> str:
    """The best accuracy so far against seconds as an SVG image, a colour for each strategy."""
    width, height, left, bottom = 720, 420, 64, 48
    points = [point for one in curves for curve in one.values() for point in curve]
    longest = max(seconds for seconds, _ in points)
    accuracies = [accuracy for _, accuracy in points]
    floor, top = min(accuracies), max(accuracies)

    def at(seconds: float, accuracy: float) -> str:
        x = left + (width - left - 120) * seconds / longest
        y = height - bottom - (height - bottom - 40) * (accuracy - floor) / max(1e-9, top - floor)
        return f"{x:.1f},{y:.1f}"

    lines, names = [], [*curves[0]]
    for name, colour in zip(names, itertools.cycle(COLOURS), strict=False):
        for one in curves:
            path = " ".join(at(*corner) for corner in _stairs(one[name], longest))
            lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        y = 40 + 20 * names.index(name)
        lines.append(f'<text x="{width - 110}" y="{y}" fill="{colour}">{escape(name)}</text>')
    marks = [
        f'<text x="{left - 8}" y="{at(0, each).split(",")[1]}" text-anchor="end">{each:.1%}</text>'
        for each in (floor, top)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="{left}" y="24">{escape(title)}: best accuracy on validation images</text>'
        f"{''.join(lines)}{''.join(marks)}"
        f'<text x="{(left + width) // 2}" y="{height - 12}" text-anchor="middle">'
        f"seconds, up to {longest:.0f}</text></svg>\n"
    )


def _stairs(curve: Sequence[tuple[float, float]], end_s: float) -> list[tuple[float, float]]:
    """The corners of a line on which each accuracy holds until the next one."""
    ends = [*(seconds for seconds, _ in curve[1:]), end_s]
    return [
        corner
        for (begin, best), end in zip(curve, ends, strict=False)
        for corner in ((begin, best), (end, best))
    ]


def subset(data: str, count: int, folder: Path) -> str:
    """A copy of the first so many training images, the classes in turn, with the test images."""
    source, target = Path(data), folder / "data"
    splits = [path for path in source.iterdir() if path.name == "train"] or [source]
    classes = sorted(path for path in splits[0].iterdir() if path.is_dir())
    for one in classes:
        (target / "train" / one.name).mkdir(parents=True)
        for path in sorted(one.iterdir())[: count // len(classes)]:
            shutil.copy(path, target / "train" / one.name / path.name)
    if splits[0].name == "train" and (source / "test").is_dir():
        shutil.copytree(source / "test", target / "test")
    return str(target)


if __name__ == "__main__":
    main()
