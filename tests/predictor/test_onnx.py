"""A batch that several threads share gets the answers that its images get alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vidi.bundle import Bundle
from vidi.predictor import Predictor, of_bundle

MANY = 37


@pytest.fixture(scope="module")
def bundle(shipped: Any) -> Bundle:
    return Bundle.open(shipped.onnx)


@pytest.fixture(scope="module")
def pixels(bundle: Bundle) -> NDArray[np.uint8]:
    side = bundle.about.pixels.image_px
    return np.random.default_rng(0).integers(0, 256, (MANY, 3, side, side), dtype=np.uint8)


@pytest.fixture(scope="module")
def alone(bundle: Bundle, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(MANY, classes) logits of each image by itself."""
    network = of_bundle(bundle, threads=1).network
    return np.concatenate([network(pixels[i : i + 1], ("logits",))[0] for i in range(MANY)])


def logits(predictor: Predictor, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return predictor.network(pixels, ("logits",))[0]


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 9, 16, 17, MANY])
def test_every_image_gets_its_own_answer(
    bundle: Bundle,
    pixels: NDArray[np.uint8],
    alone: NDArray[np.float32],
    threads: int,
    count: int,
) -> None:
    found = logits(of_bundle(bundle, threads=threads), pixels[:count])
    np.testing.assert_allclose(found, alone[:count], rtol=0, atol=1e-5)


def test_outputs_come_in_the_order_they_were_asked_for(
    bundle: Bundle, pixels: NDArray[np.uint8]
) -> None:
    network = of_bundle(bundle, threads=2).network
    features, scores = network(pixels, ("features", "logits"))
    assert features.shape == (MANY, bundle.about.num_features)
    assert scores.shape == (MANY, len(bundle.about.classes))


def test_it_may_be_asked_from_several_threads(
    bundle: Bundle, pixels: NDArray[np.uint8], alone: NDArray[np.float32]
) -> None:
    predictor = of_bundle(bundle, threads=2)
    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(lambda _: logits(predictor, pixels), range(12)):
            np.testing.assert_allclose(found, alone, rtol=0, atol=1e-5)


def test_a_batch_of_none_gives_none(bundle: Bundle, pixels: NDArray[np.uint8]) -> None:
    found = logits(of_bundle(bundle, threads=2), pixels[:0])
    assert found.shape == (0, len(bundle.about.classes))
