"""What a network's layers before the head say of each image: computed once, kept, read again."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidi import image
from vidi.augment import views
from vidi.augment_settings import ViewKind
from vidi.data import Dataset, Indices, PixelStore, replace_file
from vidi.errors import StorageError
from vidi.export.graph import folded
from vidi.model import Classifier
from vidi.plan import Plan
from vidi.step import autocast

FORMAT: Final = 1
_MAGIC: Final = b"vidi features 1\n"
# Rows of one file of the cache: what a kill costs at most, and what a caller hears of.
ROWS_A_FILE: Final = 512
# On a processor, batches of 8, 16 and 32 gave 68, 79 and 80 images/s (EfficientNet-Lite0, 224 px,
# bfloat16, norms folded, two shared cores).
ROWS_A_BATCH: Final = {"cpu": 16}
# The rate is measured on so many batches, or for so long where that is shorter.
RATE_BATCHES: Final = 4
RATE_S: Final = 1.5


class Computed(NamedTuple):
    """How far it is. values: (rows, F) float32, of the first rows asked for; `fresh` of them were
    computed now, the others were read."""

    values: Tensor
    fresh: int


class _Enough(Exception):
    """The rest of the network is not needed."""


@final
class Extractor:
    """The layers before the head, folded once, and how their answers are named in the cache."""

    def __init__(self, plan: Plan, classifier: Classifier) -> None:
        self._plan = plan
        self._network = quick_copy(plan, classifier)
        self._weights = _weights_digest(classifier)
        self._name = classifier.name

    @property
    def image_px(self) -> int:
        """Side of the images that it sees."""
        return self._plan.pixels.image_px

    def rate(self, store: PixelStore, ids: Indices, *, limit_s: float = RATE_S) -> float:
        """Images a second whose features are computed, measured on some of the rows `ids`.

        limit_s: a slow machine is measured on fewer of them.
        """
        size = self._rows_a_batch
        # The first one takes memory and chooses kernels; where all is slow, it is the measurement.
        began_at = time.perf_counter()
        self.compute(store, ids[:size], flipped=False)
        seconds, done = time.perf_counter() - began_at, len(ids[:size])
        if seconds >= limit_s:
            return done / seconds
        began_at, done = time.perf_counter(), 0
        for start in range(0, min(len(ids), RATE_BATCHES * size), size):
            rows = ids[start : start + size]
            self.compute(store, rows, flipped=False)
            done += len(rows)
            if time.perf_counter() - began_at >= limit_s:
                break
        return done / max(1e-9, time.perf_counter() - began_at)

    def features(
        self,
        dataset: Dataset,
        store: PixelStore,
        ids: Indices,
        *,
        flipped: bool,
        cache_dir: Path | None,
    ) -> Generator[Computed]:
        """The features of the rows `ids`, of the middle of each image and, with `flipped`, the mean
        with those of its mirror image; yields after every block of rows.

        They are kept in the cache, by the contents of the images, the weights before the head, and
        how they are computed; what is there already is read, and compared with its checksum.

        Args:
            cache_dir: None keeps nothing.
        """
        about = self._about(flipped=flipped)
        digests = dataset.source.digests()
        values: Tensor | None = None
        fresh = 0
        for start in range(0, len(ids), ROWS_A_FILE):
            rows = ids[start : start + ROWS_A_FILE]
            path = None
            if cache_dir is not None:
                content = np.ascontiguousarray(digests[rows]).tobytes()
                name = hashlib.blake2b(about + content, digest_size=16).hexdigest()
                path = cache_dir / "features" / name
            block = None if path is None else _read(path, len(rows))
            if block is None:
                block = self.compute(store, rows, flipped=flipped)
                fresh += len(rows)
                if path is not None:
                    # A cache that cannot be written costs time, not the result.
                    with contextlib.suppress(StorageError):
                        replace_file(path, _packed(block))
            if values is None:
                values = torch.empty(len(ids), block.shape[1])
            done = start + len(rows)
            values[start:done] = torch.from_numpy(block)
            yield Computed(values[:done], fresh)

    def compute(self, store: PixelStore, ids: Indices, *, flipped: bool) -> NDArray[np.float32]:
        """(N, F) of the rows `ids`, without the cache."""
        parts = [
            torch.stack([view.float() for view in each]).mean(0).cpu()
            for each in self._seen(self._network.features, store, ids, flipped=flipped)
        ]
        found: NDArray[np.float32] = torch.cat(parts).numpy()
        return found

    def maps(
        self,
        store: PixelStore,
        ids: Indices,
        stage: int,
        *,
        flipped: bool,
        stop: Callable[[], bool],
    ) -> Tensor | None:
        """(N, views, H, W, C) of what that stage is given, in the precision of the plan.

        Args:
            stage: its number among the classifier's.
            flipped: two views, the second of the mirror image.
            stop: asked before every batch.

        Returns:
            None where it was stopped.
        """
        found: list[Tensor] = []

        def take(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            found.append(given[0])
            raise _Enough

        def look(view: Tensor) -> Tensor:
            with contextlib.suppress(_Enough):
                self._network.features(view)
            return found.pop()

        kept: Tensor | None = None
        done = 0
        handle = self._network.stages[stage][1].register_forward_pre_hook(take)
        try:
            for each in self._seen(look, store, ids, flipped=flipped):
                if stop():
                    return None
                # The layout in which the processor's convolutions are quickest.
                maps = torch.stack(each, 1).permute(0, 1, 3, 4, 2).cpu()
                if kept is None:
                    kept = maps.new_empty((len(ids), *maps.shape[1:]))
                kept[done : done + len(maps)] = maps
                done += len(maps)
        finally:
            handle.remove()
        return kept

    def _seen(
        self,
        look: Callable[[Tensor], Tensor],
        store: PixelStore,
        ids: Indices,
        *,
        flipped: bool,
    ) -> Iterator[list[Tensor]]:
        """What `look` makes of each view of a batch of rows, batch by batch."""
        plan, size = self._plan, self._rows_a_batch
        device = torch.device(plan.execution.device)
        kind: ViewKind = "flip" if flipped else "plain"
        for start in range(0, len(ids), size):
            pixels = torch.from_numpy(store.take(ids[start : start + size])[0])
            seen = views(pixels.permute(0, 3, 1, 2).to(device), kind, plan.pixels.image_px)
            with torch.inference_mode(), autocast(device, plan.execution.precision):
                told = [look(view) for view in seen]
            yield told

    @property
    def _rows_a_batch(self) -> int:
        plan = self._plan
        return ROWS_A_BATCH.get(plan.execution.device, plan.evaluation_batch_size)

    def _about(self, *, flipped: bool) -> bytes:
        """Everything but the images that the features depend on."""
        plan = self._plan
        told = (
            f"{FORMAT}\0{image.DECODER_VERSION}\0{torch.__version__}\0{self._name}\0"
            f"{plan.execution.precision}\0{flipped}\0{plan.pixels.model_dump_json()}\0"
        )
        return told.encode() + self._weights


def features(
    plan: Plan,
    classifier: Classifier,
    dataset: Dataset,
    store: PixelStore,
    ids: Indices,
    *,
    flipped: bool,
    cache_dir: Path | None,
) -> Generator[Computed]:
    """What `Extractor.features` says, for who needs it once."""
    work = Extractor(plan, classifier)
    return work.features(dataset, store, ids, flipped=flipped, cache_dir=cache_dir)


def all_features(work: Generator[Computed]) -> Tensor:
    """Let `features` run to its end."""
    values = None
    for done in work:
        values = done.values
    assert values is not None, "there are rows"
    return values


def quick_copy(plan: Plan, classifier: Classifier) -> Classifier:
    """A copy that computes the same faster: no padding layers, norms inside the convolutions."""
    network = folded(copy.deepcopy(classifier).cpu())
    layout = torch.channels_last if plan.execution.channels_last else torch.contiguous_format
    return network.to(device=plan.execution.device, memory_format=layout)  # type: ignore[call-overload,no-any-return]


def _weights_digest(classifier: Classifier) -> bytes:
    """Of all weights but those of the head."""
    hashed = hashlib.blake2b(digest_size=16)
    head = f"network.{classifier.head_name}."
    for name, tensor in classifier.state_dict().items():
        if not name.startswith(head):
            hashed.update(name.encode())
            hashed.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return hashed.digest()


def _packed(block: NDArray[np.float32]) -> bytes:
    body = np.array(block.shape, dtype="<i8").tobytes() + np.ascontiguousarray(block).tobytes()
    return _MAGIC + hashlib.blake2b(body, digest_size=16).digest() + body


def _read(path: Path, rows: int) -> NDArray[np.float32] | None:
    """None where there is nothing, or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    start = len(_MAGIC) + 16
    body = data[start:]
    if data[:start] != _MAGIC + hashlib.blake2b(body, digest_size=16).digest() or len(body) < 16:
        return None
    shape = np.frombuffer(body, dtype="<i8", count=2)
    values = np.frombuffer(body, dtype=np.float32, offset=16)
    if shape[0] != rows or values.size != shape[0] * shape[1]:
        return None
    return values.reshape(shape).copy()
