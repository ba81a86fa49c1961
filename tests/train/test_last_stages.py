"""The last stages learn from what the others say, which stay as they are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vidi
from vidi import model
from vidi.model import Classifier
from vidi.train.last_stages import LastStages, last_stages, train_last_stages
from vidi.train.prepare import Prepared

SETTINGS: dict[str, object] = {
    "model.name": "efficientnet_lite0",
    "model.weights": "imagenet",
    "data.image_px": 64,
    "machine.threads": 1,
    "machine.probe": "never",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stripes along and across: colours tell nothing."""
    rng = np.random.default_rng(5)
    root = tmp_path_factory.mktemp("stripes")
    for label in ("along", "across"):
        (root / label).mkdir()
        for index in range(30):
            lines = np.repeat(rng.integers(0, 256, (16, 1, 3), dtype=np.uint8), 4, axis=0)
            pixels = np.broadcast_to(lines, (64, 64, 3))
            if label == "across":
                pixels = pixels.swapaxes(0, 1)
            Image.fromarray(np.ascontiguousarray(pixels)).save(root / label / f"{index}.png")
    return root


@pytest.fixture
def prepared(photos: Path) -> Prepared:
    return vidi.plan(photos, settings=SETTINGS)


def trained(prepared: Prepared, **changed: Any) -> Any:
    which = last_stages(prepared.model)
    assert which is not None
    dataset = prepared.dataset
    options: dict[str, Any] = {
        "flipped": True,
        "most_epochs": 12.0,
        "ends_at": time.monotonic() + 600,
        "stop": lambda: False,
    }
    return train_last_stages(
        prepared.plan,
        prepared.model,
        prepared.store,
        dataset.labels,
        dataset.indices("train"),
        which,
        **{**options, **changed},
    )


@pytest.mark.parametrize(
    ("name", "px", "stage"),
    [
        ("resnet18", 64, "layer4"),
        ("efficientnet_lite0", 64, "stage6"),
        ("efficientnet_b0", 64, "stage6"),
        # Not averaged before the head, or no maps at all.
        ("vgg11", 64, None),
        ("mlp", 16, None),
        ("lenet5", 32, None),
        ("small_cnn_x2_mean2", 32, None),
    ],
)
def test_they_are_found_where_a_network_is_a_chain_of_stages(
    name: str, px: int, stage: str | None
) -> None:
    classifier = build(name, px)
    found = last_stages(classifier)
    assert (found and classifier.stages[found.first][0]) == stage
    assert not classifier.training


def build(name: str, px: int) -> Classifier:
    torch.manual_seed(0)
    pixel = (0.5, 0.5, 0.5)
    made = model.build(name, num_classes=3, image_px=px, channels=3, mean=pixel, std=pixel)
    return made.eval()


def test_what_is_kept_is_counted(prepared: Prepared) -> None:
    which = LastStages(6, (112, 14, 14))
    size = 2 if prepared.plan.execution.precision == "bfloat16" else 4
    assert which.kept_bytes(10, prepared.plan) == 10 * 112 * 14 * 14 * size


def test_they_learn_and_the_others_stay_as_they_are(prepared: Prepared) -> None:
    classifier = prepared.model
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    which = last_stages(classifier)
    assert which is not None
    learnt = trained(prepared)
    assert learnt.epochs == pytest.approx(12, abs=0.7)
    assert learnt.loss < 0.45
    last = {
        f"{name}"
        for _, stage in classifier.stages[which.first :]
        for name, value in classifier.named_parameters()
        if any(value is each for each in stage.parameters())
    }
    for name, value in classifier.state_dict().items():
        changed = not torch.equal(value.cpu(), before[name])
        assert changed == (name in last), name
    held_out = prepared.dataset.indices("validation")
    pixels = torch.from_numpy(prepared.store.take(held_out)[0]).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        said = classifier.eval()(pixels.float()).argmax(1).numpy()
    assert (said == prepared.dataset.labels[held_out]).mean() > 0.8


def test_a_signal_or_no_time_gives_nothing(prepared: Prepared) -> None:
    assert trained(prepared, stop=lambda: True) is None
    assert trained(prepared, ends_at=time.monotonic() - 1.0) is None
