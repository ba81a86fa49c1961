"""Images that come one by one, predicted together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from vidi.image import Pixels
from vidi.predictor import Predictor
from vidi.serve.limits import Limits


@dataclass(frozen=True, slots=True)
class Answer:
    """About one image: probabilities (K,), heat (h, w) where asked for."""

    probabilities: NDArray[np.float32]
    heat: NDArray[np.float32] | None


@dataclass(slots=True)
class _Waiting:
    pixels: Pixels
    heat: bool
    future: asyncio.Future[Answer]


@final
class Batcher:
    """One batch at a time, on a thread of its own.

    A batch is what has gathered while the one before was computed. The first image waits for the
    window only while others are being decoded: alone, it waits for nothing.
    """

    def __init__(
        self, predictor: Predictor, limits: Limits, on_batch: Callable[[int], None]
    ) -> None:
        self._predictor = predictor
        self._limits = limits
        self._on_batch = on_batch
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        # Images that are on their way to `answer`.
        self.num_coming = 0
        self._thread = ThreadPoolExecutor(1, "predict")

    async def answer(self, pixels: Pixels, *, heat: bool) -> Answer:
        """What the model says about one prepared image."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(pixels, heat, future))
        self._arrived.set()
        return await future

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            if self.num_coming and len(self._waiting) < self._limits.batch:
                await self._gather()
            while self._waiting:
                batch = self._waiting[: self._limits.batch]
                del self._waiting[: self._limits.batch]
                # Who has gone away is not worked for.
                batch = [each for each in batch if not each.future.done()]
                if batch:
                    await self._compute(loop, batch)

    async def _gather(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.window_s):
                while self.num_coming and len(self._waiting) < self._limits.batch:
                    await self._arrived.wait()
                    self._arrived.clear()

    async def _compute(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting]) -> None:
        self._on_batch(len(batch))
        heat = any(each.heat for each in batch)
        pixels = np.stack([each.pixels for each in batch])
        try:
            found = await loop.run_in_executor(
                self._thread, lambda: self._predictor.answers(pixels, heat=heat)
            )
        except Exception as error:
            for each in batch:
                if not each.future.done():
                    each.future.set_exception(error)
            return
        for place, each in enumerate(batch):
            if not each.future.done():
                maps = found.heat[place] if found.heat is not None and each.heat else None
                each.future.set_result(Answer(found.probabilities[place], maps))

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
