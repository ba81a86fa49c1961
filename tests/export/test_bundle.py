"""What lies on disk is what was exported, or it is not loaded (FAULTS.md P4, J7, J8)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import vidi
from vidi import storage
from vidi.bundle import Bundle, Description
from vidi.errors import DamagedError, UsageError


@pytest.fixture
def copied(shipped: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped.onnx, tmp_path / "bundle"))


def test_a_bundle_says_what_is_in_it(shipped: Any) -> None:
    bundle = Bundle.open(shipped.onnx)
    about = bundle.about
    assert about.classes == ("blue", "green", "red")
    assert about.outputs[0] == "logits"
    assert (
        about.data_fingerprint
        == json.loads((shipped.run / "facts.json").read_text())["dataset"]["fingerprint"]
    )
    assert {"vidi", "torch", "onnx", "onnxruntime", "python"} <= about.versions.keys()
    assert storage.sha256(bundle.model) == about.files[0].sha256
    assert about.temperature > 0
    assert [point.wanted for point in about.thresholds] == sorted(
        point.wanted for point in about.thresholds
    )
    assert sorted(path.name for path in shipped.onnx.iterdir()) == [
        "bundle.json", "manifest.json", "model.onnx",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["bundle.json", "manifest.json", "model.onnx"])
def test_a_changed_byte_anywhere_refuses_the_bundle(copied: Path, name: str) -> None:
    path = copied / name
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for offset in [0, len(data) - 1, *rng.integers(0, len(data), 60).tolist()]:
        changed = bytearray(data)
        changed[offset] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(changed)
        with pytest.raises(DamagedError):
            vidi.load(copied)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedError):
        vidi.load(copied)
    path.unlink()
    with pytest.raises((DamagedError, UsageError)):
        vidi.load(copied)


def test_a_file_too_many_and_a_link_refuse_the_bundle(copied: Path, tmp_path: Path) -> None:
    (copied / "extra.bin").write_bytes(b"1")
    with pytest.raises(DamagedError, match=r"extra\.bin is no part of it"):
        vidi.load(copied)
    (copied / "extra.bin").unlink()
    elsewhere = tmp_path / "elsewhere.onnx"
    (copied / "model.onnx").rename(elsewhere)
    (copied / "model.onnx").symlink_to(elsewhere)
    with pytest.raises(DamagedError):
        vidi.load(copied)


def rewritten(bundle: Path, model: bytes | None = None, **changes: Any) -> Path:
    """The bundle with other contents and sums that fit: what a hostile author would do."""
    about = json.loads((bundle / "bundle.json").read_text()) | changes
    packed = (bundle / "model.onnx").read_bytes() if model is None else model
    about["files"] = [
        {"name": "model.onnx", "num_bytes": len(packed), "sha256": storage.sha256(packed)}
    ]
    shutil.rmtree(bundle)
    storage.write_folder(bundle, {"model.onnx": packed, "bundle.json": json.dumps(about).encode()})
    return bundle


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ["red", "red", "blue"]}, "not distinct"),
        ({"classes": ["red"]}, "not distinct"),
        ({"format": 2}, "format 2"),
        ({"kind": "something"}, "none of vidi's"),
        ({"temperature": 0.0}, "contradicts"),
        ({"temperature": "1e999"}, "temperature"),
        ({"outputs": ["logits", "secrets"]}, "the model gives"),
        ({"unknown": 1}, "unknown"),
        ({"pixels": {"image_px": 10**9}}, "pixels"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(
    copied: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DamagedError, match=words):
        vidi.load(rewritten(copied, **changes))


def test_another_number_of_classes_than_the_model_gives_is_refused(copied: Path) -> None:
    predictor_path = rewritten(copied, classes=["a", "b", "c", "d"])
    with pytest.raises(DamagedError, match="4 classes"):
        vidi.load(predictor_path)


@pytest.mark.parametrize("place", ["../../etc/passwd", "/etc/passwd", "weights.bin"])
@pytest.mark.parametrize("where", ["initializer", "constant"])
def test_a_model_that_names_another_file_is_refused(copied: Path, place: str, where: str) -> None:
    tensor = TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=[3])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    inside = helper.make_tensor("inside", TensorProto.FLOAT, [1], [0.0])
    nodes = [helper.make_node("Identity", ["weights"], ["logits"])]
    initializers = [tensor, inside]
    if where == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["weights"], value=tensor))
        initializers = [inside]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [None, 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [3])],
        initializers,
    )  # fmt: skip
    model = helper.make_model(graph).SerializeToString()
    with pytest.raises(DamagedError, match="outside of itself"):
        vidi.load(rewritten(copied, model))


@pytest.mark.parametrize("model", [b"", b"\x80\x02cos\nsystem\n", b"PK\x03\x04" * 30, b"\x08" * 99])
def test_what_is_no_graph_is_refused(copied: Path, model: bytes) -> None:
    with pytest.raises(DamagedError):
        vidi.load(rewritten(copied, model))


def test_the_graph_is_sound_and_eats_raw_pixels_of_any_number_of_images(shipped: Any) -> None:
    graph = onnx.load(shipped.onnx / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    (images,) = graph.graph.input
    assert images.name == "images"
    assert images.type.tensor_type.elem_type == TensorProto.UINT8
    assert images.type.tensor_type.shape.dim[0].dim_param
    assert images.type.tensor_type.shape.dim[1].dim_value == 3


def test_a_run_is_no_bundle_and_a_folder_neither(tmp_path: Path, shipped: Any) -> None:
    with pytest.raises(UsageError, match="not a bundle"):
        Bundle.open(shipped.run)
    with pytest.raises(UsageError):
        vidi.load(tmp_path)


def test_nothing_else_is_overwritten(tmp_path: Path, shipped: Any) -> None:
    bundle = Bundle.open(shipped.onnx)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        Bundle.write(tmp_path, Description(**bundle.about.model_dump()), bundle.model)
    assert (tmp_path / "letter.txt").read_text() == "mine"
