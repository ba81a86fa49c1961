"""Your own network in a few lines: check it, train it, and look at what came out.

python examples/custom_model.py [EPOCHS]

From the command line the same network is `--model custom_model:tiny`, run in this folder with
PYTHONPATH=. so that Python finds it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from torch import nn

import vidi
from vidi.testing import check_model


def tiny(num_classes: int, *, channels: int = 3) -> nn.Module:
    """Images (N, channels, H, W), normalised -> logits (N, num_classes).

    `num_classes` is all that vidi insists on. `channels`, `image_px`, `dropout` and
    `stochastic_depth` are given to a function that has arguments of those names.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        # The last linear layer with `num_classes` outputs counts as the head.
        nn.Linear(64 * 2 * 2, num_classes),
    )


def main() -> None:
    epochs = float(sys.argv[1]) if len(sys.argv) > 1 else 5
    # One sentence that says what is wrong, before any time goes into training.
    check_model(tiny)

    out = Path(tempfile.mkdtemp()) / "tiny"
    run = vidi.train("digits", model=tiny, settings={"train.epochs": epochs}, out=out)
    evaluation = vidi.evaluate(run, model=tiny)
    low, high = evaluation.accuracy_interval
    print(f"test accuracy {evaluation.accuracy:.1%} ({low:.1%} to {high:.1%})")


if __name__ == "__main__":
    main()
