"""Train on the embedded digits, judge, and predict one picture: all of vidi in thirty lines.

python examples/digits.py [EPOCHS]
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

import vidi


def main() -> None:
    epochs = float(sys.argv[1]) if len(sys.argv) > 1 else 20
    out = Path(tempfile.mkdtemp()) / "digits"
    run = vidi.train("digits", settings={"train.epochs": epochs}, out=out)

    evaluation = vidi.evaluate(run)
    low, high = evaluation.accuracy_interval
    print(f"test accuracy {evaluation.accuracy:.1%} ({low:.1%} to {high:.1%})")
    print(f"report: {run.report_path}")

    # A digit as the bytes of a file, as it would come from a disk or over a network.
    pixels = (load_digits().images[7] / 16 * 255).astype("uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    prediction = vidi.load(run.path)(file.getvalue())
    print(f"a picture of a 7 is taken for a {prediction.label} ({prediction.probability:.0%})")


if __name__ == "__main__":
    main()
