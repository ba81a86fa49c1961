"""Which rule of promotion finds as good a trial as random search for the least training.

    python benchmarks/rungs.py work/bench/cifar10 --images 5000 --pool 30 --epochs 5 --table t.json
    python benchmarks/rungs.py --table t.json           # the same table again, nothing is trained
    python benchmarks/rungs.py digits --start resnet18  # how soon a trial begins in a warm process

A pool of configs, drawn at random from the space of benchmarks/tune.py, is trained to the end once
and judged at many shares on the way. Searches are then replayed on that table in random orders of
the pool: `next_action` decides as in a search, and going on with a trial costs what the shares say.
Costs are counted in whole trainings, so nothing depends on how busy the machine is; what a sampler
would add by suggesting better configs than chance is not in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.stats import spearmanr

from tune import SPACE, subset  # type: ignore[import-not-found]  # beside this file
from vidi.config import Config
from vidi.run import Run
from vidi.study import Rung, Status, Trial
from vidi.train.loop import Progress
from vidi.train.trial import Shared, advance
from vidi.tune.rungs import Promotion, Rules, next_action
from vidi.tune.sampling import Wish, suggest

SHARES: Final = (1 / 27, 1 / 16, 1 / 9, 1 / 4, 1 / 3, 1 / 2, 1.0)
# Random search's trainings, which the others are held against.
TRAININGS: Final = 20
ORDERS: Final = 400
TRIED: Final[tuple[tuple[Promotion, int, tuple[float, ...]], ...]] = (
    ("asha", 3, (1 / 9, 1 / 3, 1.0)),
    ("asha", 4, (1 / 16, 1 / 4, 1.0)),
    ("asha", 3, (1 / 27, 1 / 9, 1 / 3, 1.0)),
    ("asha", 4, (1 / 4, 1.0)),
    ("asha", 3, (1 / 3, 1.0)),
    ("pasha", 3, (1 / 9, 1 / 3, 1.0)),
    ("pasha", 3, (1 / 27, 1 / 9, 1 / 3, 1.0)),
    ("halving", 3, (1 / 9, 1 / 3, 1.0)),
    ("halving", 4, (1 / 16, 1 / 4, 1.0)),
    ("median", 2, (1 / 9, 1 / 3, 1.0)),
    ("none", 3, (1.0,)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", nargs="?")
    parser.add_argument("--images", type=int)
    parser.add_argument("--pool", type=int, default=30)
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--model", default="small_cnn")
    parser.add_argument("--schedule", default="trapezoid")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--validation", type=float, metavar="FRACTION")
    parser.add_argument("--start", metavar="MODEL")
    parser.add_argument("--table", type=Path)
    asked = parser.parse_args()
    if asked.start:
        print(f"a trial of {asked.start} begins {_start_s(asked):.2f} s after it was asked for")
        return
    if asked.data:
        table = _trained(asked)
        if asked.table:
            asked.table.write_text(json.dumps(table) + "\n")
    else:
        table = json.loads(asked.table.read_text())
    _print(table)


def _config(asked: argparse.Namespace) -> Config:
    return Config().with_settings(
        {
            "model.name": asked.model,
            "train.epochs": asked.epochs,
            "train.schedule": asked.schedule,
            "train.warmup_fraction": 0.05,
            "data.build": "before",
        }
        | ({"machine.threads": asked.threads} if asked.threads else {})
        | ({"data.validation_fraction": asked.validation} if asked.validation else {})
    )


def _trained(asked: argparse.Namespace) -> dict[str, Any]:
    config = _config(asked)
    accuracies: list[list[float]] = []
    losses: list[list[float]] = []
    with tempfile.TemporaryDirectory(prefix="vidi-rungs-") as name:
        folder = Path(name)
        data = subset(asked.data, asked.images, folder) if asked.images else asked.data
        with Shared(data, config) as shared:
            num_validation = len(shared.dataset.indices("validation"))
            for number in range(1, asked.pool + 1):
                suggestion = suggest(SPACE, config, Wish("random", 0), (), number)
                assert suggestion is not None
                path = folder / f"{number:04d}"
                began_at = time.monotonic()
                advance(path, shared, config.with_settings(suggestion.settings), rungs=SHARES)
                records = [
                    one for one in Run.open(path).metrics.read() if one["kind"] == "validation"
                ]
                accuracies.append([one["accuracy"] for one in records])
                losses.append([one["log_loss"] for one in records])
                curve = " ".join(f"{each:.1%}" for each in accuracies[-1])
                print(f"{number:3}  {time.monotonic() - began_at:5.1f} s  {curve}", flush=True)
    return {"num_validation": num_validation, "accuracies": accuracies, "log_losses": losses}


def _print(table: dict[str, Any]) -> None:
    accuracies = np.array(table["accuracies"])
    ends = accuracies[:, -1]
    print(f"{len(ends)} configs, {ends.min():.1%} to {ends.max():.1%} at the end")
    for place, share in enumerate(SHARES[:-1]):
        agreement = float(spearmanr(accuracies[:, place], ends).statistic)
        print(f"rank correlation with the end at {share:4.0%}: {agreement:.2f}")
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(ends)) for _ in range(ORDERS)]
    goals = [float(ends[rng.permutation(len(ends))[:TRAININGS]].max()) for _ in orders]
    error = math.sqrt(float(ends.max() * (1 - ends.max())) / table["num_validation"])
    print(f"\ngoal: the best of {TRAININGS} random trainings; near: within {error:.1%} of it")
    print(
        "rule      1 in  rungs                 goal (trainings)    near (trainings)   of random's"
    )
    for promotion, eta, shares in TRIED:
        rules = Rules(shares, promotion, eta, num_trials=len(ends), bound=True)
        goal, near = (
            [
                _cost(table, rules, order, one - tolerance)
                for order, one in zip(orders, goals, strict=True)
            ]
            for tolerance in (0.0, error)
        )
        rungs = ", ".join(f"{share:.0%}" for share in shares)
        middle = statistics.median(near)
        print(
            f"{promotion:9} {eta:3}   {rungs:20}  {_told(goal):18}  {_told(near):18}"
            f"{middle / TRAININGS:10.0%}"
        )


def _told(costs: Sequence[float]) -> str:
    reached = sum(1 for cost in costs if cost < math.inf) / len(costs)
    return f"{statistics.median(costs):5.1f} in {reached:4.0%}"


def _cost(table: dict[str, Any], rules: Rules, order: Any, goal: float) -> float:
    """Whole trainings until a finished trial is that good; infinite when none ever is."""
    places = [SHARES.index(share) for share in rules.shares]
    trials: list[Trial] = []
    spent = 0.0
    while True:
        action = next_action(trials, rules, num_validation=table["num_validation"])
        if action.kind not in ("begin", "go_on"):
            return math.inf
        assert action.number is not None
        assert action.rung is not None
        if action.kind == "begin":
            trials.append(Trial(action.number, {}))
        trial = trials[action.number - 1]
        spent += rules.shares[action.rung] - (
            rules.shares[len(trial.rungs) - 1] if trial.rungs else 0.0
        )
        config = int(order[action.number - 1])
        rungs = tuple(
            Rung(place, table["accuracies"][config][place], table["log_losses"][config][place], 0.0)
            for place in places[: action.rung + 1]
        )
        finished = action.rung == len(rules.shares) - 1
        status: Status = "finished" if finished else "paused"
        trials[action.number - 1] = replace(trial, rungs=rungs, status=status)
        if finished and rungs[-1].accuracy >= goal:
            return spent


def _start_s(asked: argparse.Namespace) -> float:
    """From the request to the first update, which itself is taken out by the second one."""
    asked.model = asked.start
    config = _config(asked).with_settings({"machine.probe": "never"})
    found: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="vidi-rungs-") as folder,
        Shared(asked.data, config) as shared,
    ):
        for number in range(6):
            moments: list[float] = []

            def tell(what: object, moments: list[float] = moments) -> None:
                if isinstance(what, Progress) and what.phase == "train":
                    moments.append(time.monotonic())

            began_at = time.monotonic()
            advance(
                Path(folder) / str(number),
                shared,
                # As in a search: other settings, the same seed.
                config.with_settings({"train.learning_rate": 0.01 * (number + 1)}),
                last_step=3,
                tell=tell,
            )
            step_s = min(after - before for before, after in itertools.pairwise(moments))
            found.append(moments[0] - began_at - step_s)
    # The first ones warm the process.
    return statistics.median(found[2:])


if __name__ == "__main__":
    main()
