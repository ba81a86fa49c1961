"""Float32 ONNX -> int8 ONNX: static quantisation, calibrated on training images."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidi.data import PixelStore
from vidi.export.graph import INPUT
from vidi.image import center_crop
from vidi.plan import Plan

# Images whose activations set the ranges of the 8 bits.
CALIBRATION_IMAGES: Final = 256
_BATCH: Final = 16


def quantised(packed: bytes, store: PixelStore, ids: NDArray[np.int64], plan: Plan) -> bytes:
    """The same graph with convolutions and products of 8 bits (weights one range a channel).

    Convolutions and their additions become integers; what turns pixels into numbers and the head,
    which are small and where every digit counts, stay in float32.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = _batches(store, ids, plan)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            return next(batches, None)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain, shaped, made = folder / "plain.onnx", folder / "shaped.onnx", folder / "int8.onnx"
        plain.write_bytes(packed)
        level = logging.root.level
        # Its advice about preparing the graph is meant for the command line, and was followed.
        logging.root.setLevel(logging.ERROR)
        try:
            quant_pre_process(str(plain), str(shaped), skip_symbolic_shape=True)
            graph = onnx.load(str(shaped)).graph
            head = [node.name for node in graph.node if node.op_type in ("Gemm", "MatMul")]
            quantization.quantize_static(
                str(shaped),
                str(made),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Add", "MaxPool", "Clip", "Relu"],
                nodes_to_exclude=[*_before_first_convolution(graph), *head],
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                extra_options={"CalibMovingAverage": True},
            )
        finally:
            logging.root.setLevel(level)
        return made.read_bytes()


def _batches(
    store: PixelStore, ids: NDArray[np.int64], plan: Plan
) -> Iterator[dict[str, NDArray[np.uint8]]]:
    for start in range(0, len(ids), _BATCH):
        pixels = center_crop(store.take(ids[start : start + _BATCH])[0], plan.pixels.image_px)
        yield {INPUT: np.ascontiguousarray(np.moveaxis(pixels, 3, 1))}


def _before_first_convolution(graph: Any) -> list[str]:
    """The nodes that turn pixels into normalised numbers."""
    names = []
    for node in graph.node:
        if node.op_type == "Conv":
            break
        names.append(node.name)
    return names
