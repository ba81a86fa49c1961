"""An ONNX file as a network, by onnxruntime on the processor. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from vidi.bundle import check_graph
from vidi.errors import DamagedError, MissingExtra


@final
class OnnxNetwork:
    """The graph of a bundle; safe to call from several threads."""

    def __init__(self, model: bytes, *, where: str, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtra(
                "predicting with an ONNX bundle needs onnxruntime",
                fix="pip install onnxruntime   (all that exporting needs: 'vidi[export]')",
            ) from None
        check_graph(model, where)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        # Its own messages go to standard error, which is ours to write.
        options.log_severity_level = 4
        # A thread that waits by turning takes the core from the one that decodes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        # onnxruntime's errors have no common base below this one.
        except Exception as error:
            words = str(error).splitlines()[0][:200]
            raise DamagedError(f"{where}: onnxruntime cannot load the model: {words}") from None
        self._input = self._session.get_inputs()[0].name
        given = {output.name: output.shape for output in self._session.get_outputs()}
        self.outputs = tuple(given)
        # What is no fixed number is a name; `None` fits no number of classes.
        self.num_classes = given["logits"][-1] if given.get("logits") else None

    def __call__(
        self, pixels: NDArray[np.uint8], outputs: Sequence[str]
    ) -> tuple[NDArray[np.float32], ...]:
        feed = {self._input: np.ascontiguousarray(pixels)}
        return tuple(self._session.run(list(outputs), feed))
