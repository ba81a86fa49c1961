"""An ONNX file as a network, by onnxruntime on the processor. No torch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, cast, final

import numpy as np
from numpy.typing import NDArray

from vidi.bundle import check_graph
from vidi.cores import usable_cores
from vidi.errors import DamagedError, MissingExtra

# So many images go through the network at once in one thread: more leave its cache, fewer leave
# large matrix products half empty. docs/measurements.md
_MOST_AT_ONCE: Final = 4


@final
class OnnxNetwork:
    """The graph of a bundle; safe to call from several threads.

    A batch is shared out: each thread takes some of its images through the whole network. That
    answers 1.2 to 1.3 times as many images as all threads computing every layer together, which
    wait for one another at each; only a batch of fewer images than threads is computed so.
    """

    def __init__(self, model: bytes, *, where: str, threads: int | None = None) -> None:
        check_graph(model, where)
        self._model, self._where = model, where
        self._threads = threads or usable_cores()
        self._lock = threading.Lock()
        self._sessions: dict[int, Any] = {}
        self._pool: ThreadPoolExecutor | None = None
        # The one that a lone image needs; the other comes with the first batch.
        session = self._session(self._threads)
        self._input = session.get_inputs()[0].name
        given = {output.name: output.shape for output in session.get_outputs()}
        self.outputs = tuple(given)
        # What is no fixed number is a name; `None` fits no number of classes.
        self.num_classes = given["logits"][-1] if given.get("logits") else None

    def __call__(
        self, pixels: NDArray[np.uint8], outputs: Sequence[str]
    ) -> tuple[NDArray[np.float32], ...]:
        pixels = np.ascontiguousarray(pixels)
        names = list(outputs)
        if self._threads == 1 or len(pixels) < self._threads:
            return tuple(self._session(self._threads).run(names, {self._input: pixels}))
        session = self._session(1)
        size = min(_MOST_AT_ONCE, -(-len(pixels) // self._threads))

        def some(first: int) -> list[NDArray[np.float32]]:
            answers = session.run(names, {self._input: pixels[first : first + size]})
            return cast("list[NDArray[np.float32]]", answers)

        assert self._pool is not None
        parts = list(self._pool.map(some, range(0, len(pixels), size)))
        return tuple(np.concatenate(each) for each in zip(*parts, strict=True))

    def _session(self, threads: int) -> Any:
        """One whose layers are computed by so many threads."""
        with self._lock:
            if threads not in self._sessions:
                self._sessions[threads] = _loaded(self._model, self._where, threads)
                if threads != self._threads:
                    # Both are there: nothing is loaded any more.
                    self._model = b""
                    self._pool = ThreadPoolExecutor(self._threads, "vidi-onnx")
            return self._sessions[threads]


def _loaded(model: bytes, where: str, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra(
            "predicting with an ONNX bundle needs onnxruntime",
            fix="pip install onnxruntime   (all that exporting needs: 'vidi[export]')",
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its own messages go to standard error, which is ours to write.
    options.log_severity_level = 4
    # A thread that waits by turning takes the core from the one that decodes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    # onnxruntime's errors have no common base below this one.
    except Exception as error:
        words = str(error).splitlines()[0][:200]
        raise DamagedError(f"{where}: onnxruntime cannot load the model: {words}") from None
