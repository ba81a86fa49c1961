"""What is exported says what was trained, from the bytes of files to the label (FAULTS.md J14)."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vidi
from vidi.augment import views
from vidi.bundle import Bundle
from vidi.errors import MismatchError, UsageError
from vidi.export import parity
from vidi.predictor.predictor import cut
from vidi.predictor.trained import restored
from vidi.run import Run


def test_the_bundle_says_what_the_run_says_about_bytes_paths_and_pixels(shipped: Any) -> None:
    trained, bundle = vidi.load(shipped.run), vidi.load(shipped.onnx)
    for path in shipped.files()[::7]:
        pixels = np.asarray(Image.open(path))
        ours = trained(path.read_bytes())
        for image in (path.read_bytes(), bytearray(path.read_bytes()), path, str(path)):
            theirs = bundle(image)
            assert theirs.label == ours.label
            assert theirs.probability == pytest.approx(ours.probability, abs=1e-5)
        assert bundle(pixels).label == trained(pixels).label


def test_the_proof_is_in_the_bundle(shipped: Any) -> None:
    proof = Bundle.open(shipped.onnx).about.parity
    assert proof.split == "validation"
    assert proof.n == 9
    assert proof.label_agreement == 1.0
    assert proof.largest_difference < 1e-5 < proof.tolerance
    assert proof.accuracy_trained == proof.accuracy_bundle


def test_outside_the_tolerance_nothing_is_written_and_the_file_is_named(
    shipped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "TOLERANCE", -1.0)
    with pytest.raises(MismatchError, match=r"/0\d\d\.jpg: a probability differs by"):
        vidi.export(shipped.run, out=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_other_data_than_the_run_was_trained_on_are_refused(
    shipped: Any, picture_folder: Any
) -> None:
    with pytest.raises(MismatchError, match=r"not what .* was trained on"):
        vidi.export(shipped.run, data=picture_folder("other", red=12, blue=12, green=12))


def test_an_unknown_target_is_named_with_the_nearest(shipped: Any) -> None:
    with pytest.raises(UsageError, match="onnx-int8"):
        vidi.export(shipped.run, to="onnx-int")


def test_eight_bits_are_measured_before_and_after(shipped: Any, tmp_path: Path) -> None:
    about = vidi.export(shipped.run, to="onnx-int8", out=tmp_path / "int8").about
    assert about.quantised is not None
    assert about.quantised.accuracy_before - about.quantised.accuracy_after <= 0.01
    assert about.quantised.calibration_images > 30
    assert about.files[0].num_bytes < 0.5 * Bundle.open(shipped.onnx).about.files[0].num_bytes
    path = shipped.files()[0]
    rounded, exact = vidi.load(tmp_path / "int8")(path), vidi.load(shipped.onnx)(path)
    assert rounded.probability == pytest.approx(exact.probability, abs=0.1)


def test_a_file_of_torch_export_is_loaded_only_when_it_is_trusted(
    shipped: Any, tmp_path: Path
) -> None:
    bundle = vidi.export(shipped.run, to="torch", out=tmp_path / "torch")
    assert b".pkl" not in bundle.model
    with pytest.raises(UsageError, match="can run code"):
        vidi.load(bundle.path)
    path = shipped.files()[3]
    ours, theirs = vidi.load(shipped.run)(path), vidi.load(bundle.path, trusted=True)(path)
    assert theirs.label == ours.label
    assert theirs.probability == pytest.approx(ours.probability, abs=1e-5)
    program = torch.export.load(io.BytesIO(bundle.model)).module()
    assert program(torch.zeros(5, 3, *[bundle.about.pixels.image_px] * 2, dtype=torch.uint8))[
        0
    ].shape == (5, 3)


def test_without_torch_and_without_scipy_a_bundle_predicts(shipped: Any) -> None:
    code = (
        "import sys, vidi\n"
        f"print(vidi.load({str(shipped.onnx)!r})({str(shipped.files()[0])!r}).label)\n"
        "print([m for m in ('torch', 'scipy', 'sklearn', 'onnx') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [vidi.load(shipped.run)(shipped.files()[0]).label, "[]"]


def test_the_heat_of_a_bundle_is_grad_cam(shipped: Any) -> None:
    """Against gradients through the trained network, at the maps that the last block gives."""
    bundle = vidi.load(shipped.onnx)
    pixels = np.stack([bundle.prepare(path) for path in shipped.files()[::9]])
    heat = bundle.answers(pixels, heat=True).heat
    assert heat is not None
    _, _, classifier, _ = restored(Run.open(shipped.run))
    kept: list[torch.Tensor] = []
    module = dict(classifier.stages)["block3"]
    module.register_forward_hook(lambda _, __, out: kept.append(out))
    logits = classifier(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    (gradient,) = torch.autograd.grad(logits.amax(dim=1).sum(), kept[-1])
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    expected = torch.relu((weights * kept[-1]).sum(dim=1)).detach().numpy()
    assert heat.shape == expected.shape
    for ours, theirs in zip(heat, expected, strict=True):
        assert np.allclose(
            ours / max(ours.max(), 1e-9), theirs / max(theirs.max(), 1e-9), atol=1e-3
        )


def test_features_of_bundle_and_run_are_the_same(shipped: Any) -> None:
    trained, bundle = vidi.load(shipped.run), vidi.load(shipped.onnx)
    pixels = np.stack([trained.prepare(path) for path in shipped.files()[::11]])
    ours, theirs = (each.answers(pixels, features=True).features for each in (trained, bundle))
    assert ours is not None
    assert theirs is not None
    assert ours.shape == (len(pixels), trained.num_features)
    assert np.allclose(ours, theirs, atol=1e-4)


def test_calibration_changes_the_probabilities_and_not_the_order(shipped: Any) -> None:
    about = Bundle.open(shipped.onnx).about
    plain, honest = vidi.load(shipped.onnx), vidi.load(shipped.onnx, calibrated=True)
    assert about.temperature != 1.0
    for path in shipped.files()[::13]:
        ours, theirs = plain(path), honest(path)
        assert ours.label == theirs.label
        assert ours.probability != theirs.probability
        pixels = np.moveaxis(plain.prepare(path)[None], 3, 1)
        odds = np.exp(plain.network(pixels, ["logits"])[0][0] / about.temperature)
        assert theirs.probability == pytest.approx(odds.max() / odds.sum(), abs=1e-4)


def test_thresholds_of_validation_travel_with_the_bundle(shipped: Any) -> None:
    trained, bundle = vidi.load(shipped.run), vidi.load(shipped.onnx)
    assert bundle.thresholds == trained.thresholds
    threshold = bundle.threshold_for(0.95)
    unsure = vidi.load(shipped.onnx, abstain_below=1.0)
    assert any(unsure(path).abstained for path in shipped.files()[::5])
    assert not vidi.load(shipped.onnx, abstain_below=0.0)(shipped.files()[0]).abstained
    assert 0 < threshold <= 1
    with pytest.raises(UsageError, match="known are"):
        bundle.threshold_for(0.123)
    with pytest.raises(UsageError, match=r"0\.\.1"):
        vidi.load(shipped.onnx, abstain_below=1.5)


@pytest.mark.parametrize("kind", ["flip", "shift", "shift_flip", "five", "ten"])
def test_views_are_cut_without_torch_as_evaluation_cuts_them(kind: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 11, 11, 3), dtype=np.uint8)
    ours = cut(pixels, kind, 8)
    theirs = views(torch.from_numpy(pixels).permute(0, 3, 1, 2), kind, 8)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(np.moveaxis(one, 3, 1), other.numpy())


def test_averaged_views_of_a_bundle_are_those_of_the_run(shipped: Any) -> None:
    trained, bundle = vidi.load(shipped.run, tta=True), vidi.load(shipped.onnx, tta=True)
    assert trained.views == bundle.views != "plain"
    images = [path.read_bytes() for path in shipped.files()[::9]]
    plain = vidi.load(shipped.onnx).probabilities(images)
    averaged = bundle.probabilities(images)
    assert np.allclose(averaged, trained.probabilities(images), atol=1e-5)
    assert not np.allclose(averaged, plain, atol=1e-5)


def test_a_bundle_looks_at_other_views_where_its_run_does(shipped: Any, tmp_path: Path) -> None:
    settings = {
        "train.epochs": 2, "model.name": "small_cnn", "machine.threads": 1,
        "augment.horizontal_flip": "random",
    }  # fmt: skip
    run = vidi.train(shipped.photos, settings=settings, out=tmp_path / "run")
    trained, bundle = vidi.load(run.path), vidi.load(vidi.export(run).path)
    pixels = np.stack([trained.prepare(path) for path in shipped.files()[::9]])
    said = trained.answers(pixels, heat=True)
    assert said.heat is not None
    for predictor in (trained, bundle):
        for shown in (pixels, pixels[:, :, ::-1].copy()):
            found = predictor.answers(shown, heat=True)
            assert np.allclose(found.probabilities, said.probabilities, atol=1e-5)
    heat = bundle.answers(pixels, heat=True).heat
    assert heat is not None
    assert np.allclose(heat, said.heat, atol=1e-4)
    assert json.loads(run.text("plan"))["model"]["views"] == "shift_flip"
    with pytest.raises(UsageError, match="no views to average, besides those"):
        vidi.load(run.path, tta=True)
    settings["model.views"] = "flip"
    run = vidi.train(shipped.photos, settings=settings, out=tmp_path / "mirrored")
    assert vidi.load(run.path, tta=True).views == "shift"
