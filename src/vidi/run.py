"""A run: one directory that holds everything of one training, and the only state there is.

This is the only module that knows the names of its files. Whoever works in a run holds its lock;
whoever reads it needs none, also while it trains. See `vidi.storage` for what survives what.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import itertools
import os
import re
import threading
import unicodedata
import zipfile
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, final

import numpy as np
from numpy.typing import NDArray

from vidi import __version__, storage
from vidi.errors import DamagedError, StorageError, UsageError
from vidi.storage import DISK, Buffer, Disk, LineLog, Lock, Manifest, NewerFormatError, shown

__all__ = ["BackgroundSaver", "Checkpoint", "RecordLog", "Run", "default_run_path"]

RUN_FORMAT: Final = 1
CHECKPOINT_FORMAT: Final = 1

_KIND: Final = "vidi run"
_RUN: Final = "run.json"
_LOCK: Final = "lock"
_STATE: Final = "state.json"
_TEXTS: Final[Mapping[str, str]] = {
    "config": "config.toml",
    "plan": "plan.json",
    "facts": "facts.json",
    "environment": "environment.json",
    "audit": "audit.json",
    "replaces": "replaces.json",
}
_METRICS: Final = "metrics.jsonl"
_TIMING: Final = "timing.jsonl"
_CHECKPOINTS: Final = "checkpoints"
_PREDICTIONS: Final = "predictions"
_EVALUATION: Final = "evaluation"

# The newest may turn out damaged years later; one more costs little disk.
_KEPT_CHECKPOINTS: Final = 2

_STEP_NAME: Final = re.compile(r"step-([0-9]{6,})(\.old)?")
_SPLIT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_ARRAY_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


# ---- Logs ----------------------------------------------------------------------------------------


@final
class RecordLog:
    """One JSON object a line, appended; see `storage.LineLog` for what a kill leaves of it."""

    def __init__(self, path: Path, *, disk: Disk = DISK) -> None:
        self._lines = LineLog(path, disk=disk)

    @property
    def path(self) -> Path:
        return self._lines.path

    @property
    def offset(self) -> int:
        """Where the next record will begin, in bytes."""
        return self._lines.offset

    def append(self, record: Mapping[str, object]) -> None:
        """Raises UsageError for what JSON cannot hold, NaN among it; StorageError."""
        self._lines.append(storage.dump_json(dict(record)).decode("ascii").rstrip("\n"))

    def read(self) -> list[dict[str, Any]]:
        """All whole records. A last line without its end is passed over.

        Raises DamagedError, naming the line, for any other that is no JSON object.
        """
        records: list[dict[str, Any]] = []
        for number, line in enumerate(self._lines.lines(), start=1):
            where = f"{shown(self.path)}, line {number},"
            record = storage.parse_json(line.encode("utf-8", "surrogateescape"), where)
            if not isinstance(record, dict):
                raise DamagedError(f"{where} is damaged: no JSON object")
            records.append(record)
        return records

    def truncate(self, offset: int) -> None:
        """Cuts it back to an earlier `offset`. Raises DamagedError when it does not reach there."""
        self._lines.truncate(offset)

    def sync(self) -> None:
        """Makes every record so far survive a power loss; a kill it survives anyway."""
        self._lines.sync()

    def restore(self) -> None:
        """Writes the file again after it was deleted while open."""
        self._lines.restore()

    def close(self) -> None:
        self._lines.close()


# ---- Checkpoints ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved moment of a training, verified when this value was made."""

    path: Path
    step: int
    state: Mapping[str, Any]
    # Where the logs ended at that moment, in bytes.
    metrics_offset: int
    timing_offset: int
    manifest: Manifest
    # What went wrong around a save that succeeded, in words to show once.
    notices: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The files that `read` gives."""
        return tuple(name for name in self.manifest.files if name != _STATE)

    def read(self, name: str) -> bytes:
        """One file, compared with its checksum once more. Raises DamagedError, UsageError."""
        return storage.read_member(self.path, name, self.manifest)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A folder that claims to be a checkpoint."""

    path: Path
    step: int
    # It was moved aside by a save of the same step that was cut off before it was done.
    aside: bool

    @property
    def rank(self) -> tuple[int, bool]:
        return self.step, not self.aside


def _load(path: Path, step: int) -> Checkpoint:
    manifest = storage.verify_folder(path)
    record = storage.parse_json(
        storage.read_member(path, _STATE, manifest), f"{shown(path)}: {_STATE}"
    )
    try:
        if record["format"] != CHECKPOINT_FORMAT:
            raise NewerFormatError(
                f"{shown(path)} is a checkpoint of format {record['format']}, written by vidi "
                f"{record['vidi']}; this is vidi {__version__}, which reads format "
                f"{CHECKPOINT_FORMAT}",
                fix=f"install vidi {record['vidi']} or later",
            )
        if record["step"] != step:
            raise DamagedError(f"{shown(path)} holds step {record['step']}: it was renamed")
        return Checkpoint(
            path=path,
            step=step,
            state=dict(record["state"]),
            metrics_offset=int(record["metrics_offset"]),
            timing_offset=int(record["timing_offset"]),
            manifest=manifest,
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{shown(path)}: {_STATE} has not what a checkpoint has") from error


def _step_folder(step: int) -> str:
    return f"step-{step:06d}"


# ---- The run -------------------------------------------------------------------------------------


@final
class Run:
    """One run directory.

    Make one with `Run.create` or `Run.open`. Threads may share it; processes share it through its
    lock.
    """

    def __init__(self, path: Path, texts: Mapping[str, str], disk: Disk) -> None:
        """Use `create` or `open`."""
        self.path = path
        self.metrics = RecordLog(path / _METRICS, disk=disk)
        self.timing = RecordLog(path / _TIMING, disk=disk)
        self._disk = disk
        # Kept in memory too, to write them again should somebody delete the directory under us.
        self._texts = dict(texts)
        self._lock: Lock | None = None
        self._saving = threading.Lock()
        self._made_again = False

    @classmethod
    def create(cls, path: Path | str, *, texts: Mapping[str, str], disk: Disk = DISK) -> Self:
        """A new run at `path`, which must not exist or be empty.

        texts: what is known before the first step, by the names "config" (TOML), "plan", "facts"
        and "environment" (JSON); "config" is required.

        A creation that was killed is done anew. Raises UsageError, InUseError, StorageError.
        """
        path = Path(path)
        _check_texts(texts)
        if "config" not in texts:
            raise UsageError("a run cannot be created without its config")
        _refuse_foreign(path)
        storage.make_folder(path, mode=0o700, disk=disk)
        lock = Lock(path / _LOCK)
        lock.acquire()
        try:
            _refuse_foreign(path)
            run = cls(path, texts, disk)
            run._write_skeleton()
        finally:
            lock.release()
        return run

    @classmethod
    def open(cls, path: Path | str, *, disk: Disk = DISK) -> Self:
        """The run at `path`.

        Raises UsageError, with what the place looks like instead, when it is no run; DamagedError
        when it is damaged or newer than this vidi.
        """
        path = Path(path)
        if not os.path.lexists(path / _RUN):
            raise _not_a_run(path)
        where = shown(path / _RUN)
        record = storage.parse_json(storage.read_file(path / _RUN, limit_bytes=1 << 16), where)
        if not isinstance(record, dict) or record.get("kind") != _KIND:
            raise DamagedError(f"{where} is not the {_RUN} of a vidi run", fix="see what wrote it")
        if record.get("format") != RUN_FORMAT:
            raise NewerFormatError(
                f"{shown(path)} is a run of format {record.get('format')}, written by vidi "
                f"{record.get('vidi')}; this is vidi {__version__}, which reads format "
                f"{RUN_FORMAT}",
                fix=f"install vidi {record.get('vidi')} or later",
            )
        texts = {
            name: _decode(storage.read_file(path / file), path / file)
            for name, file in _TEXTS.items()
            if os.path.lexists(path / file)
        }
        return cls(path, texts, disk)

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Whether `open` would find a run, whole or damaged, and not a place to create one."""
        return os.path.lexists(Path(path) / _RUN)

    @staticmethod
    def check_free(path: Path | str) -> None:
        """Raises UsageError unless a run can be created at `path`: nothing, or nothing foreign."""
        _refuse_foreign(Path(path))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    # Texts

    def text(self, name: str) -> str:
        """One of the names in `_TEXTS`, e.g. "plan". Raises UsageError when it is not there.

        As it was when the run was opened, or written through this object.
        """
        _check_texts({name: ""})
        if name not in self._texts:
            raise UsageError(f"{shown(self.path)} has no {_TEXTS[name]}")
        return self._texts[name]

    def has_text(self, name: str) -> bool:
        _check_texts({name: ""})
        return name in self._texts

    def write_text(self, name: str, text: str) -> None:
        """Raises StorageError; the earlier text is then still there."""
        _check_texts({name: text})
        storage.write_file(self.path / _TEXTS[name], text.encode("utf-8"), disk=self._disk)
        self._texts[name] = text

    @property
    def config_path(self) -> Path:
        return self.path / _TEXTS["config"]

    # Lock

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Nobody else works in this run meanwhile. Raises InUseError that names pid and host."""
        lock = Lock(self.path / _LOCK)
        lock.acquire()
        self._lock = lock
        try:
            yield
        finally:
            with self._saving:
                self._lock = None
            self.metrics.close()
            self.timing.close()
            lock.release()

    @staticmethod
    def break_lock(path: Path | str) -> None:
        """Takes the lock of a run from a process that is surely gone, on whichever machine it was.

        Only for who started that process and has seen its end.
        """
        with contextlib.suppress(OSError):
            (Path(path) / _LOCK).unlink()

    # Checkpoints

    def save_checkpoint(
        self,
        step: int,
        files: Mapping[str, Buffer],
        state: Mapping[str, object],
        keep_steps: Collection[int] = (),
    ) -> Checkpoint:
        """Saves `files` and `state`, proves that they can be read back, and then lets old ones go.

        files: by plain names, such as "model.safetensors"; they must not change meanwhile.
        state: JSON. keep_steps: steps to keep besides the newest two, such as the best.

        Needs the lock. One save at a time: a second one waits. Raises StorageError; earlier
        checkpoints are then untouched, and training can go on.
        """
        return self._save(self._request(step, files, state, keep_steps))

    def checkpoint_steps(self) -> tuple[int, ...]:
        """The steps that have a checkpoint, ascending; not verified."""
        return tuple(sorted({candidate.step for candidate in self._candidates()}))

    def checkpoint(self, step: int) -> Checkpoint:
        """The checkpoint of one step, verified. Raises UsageError, DamagedError."""
        found = [candidate for candidate in self._candidates() if candidate.step == step]
        if not found:
            steps = ", ".join(map(str, self.checkpoint_steps())) or "none"
            raise UsageError(
                f"{shown(self.path)} has no checkpoint of step {step}", fix=f"it has: {steps}"
            )
        return _load(max(found, key=lambda candidate: candidate.rank).path, step)

    def newest_checkpoint(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """The valid checkpoint of the highest step, and a sentence for each damaged one above it.

        None: there is no checkpoint yet. Who holds the lock also tidies: damaged ones are renamed
        to end in ".bad", what writes that were cut off left behind is removed.

        Raises DamagedError with all reasons when there are checkpoints but none is valid (nothing
        is renamed then), or when the newest is of a later format.
        """
        damaged: dict[_Candidate, str] = {}
        candidates = self._candidates()
        while candidates:
            candidate = candidates.pop()
            try:
                found = _load(candidate.path, candidate.step)
            except NewerFormatError:
                raise
            except DamagedError as error:
                if os.path.lexists(candidate.path):
                    damaged[candidate] = error.message
                else:
                    # Somebody trains here and let it go while we looked at it: look again.
                    candidates = [one for one in self._candidates() if one not in damaged]
                continue
            return self._settled(candidate, found, damaged)
        if damaged:
            raise DamagedError(
                f"every checkpoint of {shown(self.path)} is damaged:"
                + "".join(f"\n  {reason}" for reason in damaged.values()),
                fix="put one back from a copy, or start a new run; nothing was deleted",
            )
        if self._lock is not None:
            self._tidy()
        return None, ()

    def rewind(self, checkpoint: Checkpoint | None) -> None:
        """Makes the run what it was at that checkpoint (None: at its start).

        The logs are cut back to it, later checkpoints are removed. Needs the lock. Raises
        DamagedError when a log is shorter than it was; StorageError.
        """
        self._held()
        self._rewind(checkpoint)

    def let_go(self) -> None:
        """`rewind` to the start where no lock can be taken, because the disk takes not a byte more.

        Only for who knows that nobody works in it. Raises DamagedError, StorageError.
        """
        self._rewind(None)

    def _rewind(self, checkpoint: Checkpoint | None) -> None:
        step = -1 if checkpoint is None else checkpoint.step
        # First: were they still there after a kill in between, the later ones would win.
        storage.discard_folder(
            [one.path for one in self._candidates() if one.step > step], disk=self._disk
        )
        self.metrics.truncate(0 if checkpoint is None else checkpoint.metrics_offset)
        self.timing.truncate(0 if checkpoint is None else checkpoint.timing_offset)

    # Results

    def write_predictions(self, split: str, arrays: Mapping[str, NDArray[Any]]) -> Path:
        """`arrays` by name, numbers and fixed-length text only. Raises UsageError, StorageError."""
        return self._write_arrays(self.predictions_path(split), arrays)

    def read_predictions(self, split: str) -> dict[str, NDArray[Any]]:
        """Raises UsageError when there are none, DamagedError."""
        return _read_arrays(self.predictions_path(split), "predictions")

    def predictions_path(self, split: str) -> Path:
        return self.path / _PREDICTIONS / f"{_checked_split(split)}.npz"

    def write_evaluation(self, split: str, text: str) -> Path:
        """`text` is a JSON document. Raises StorageError."""
        return self._write_result(self.evaluation_path(split), text.encode("utf-8"))

    def read_evaluation(self, split: str) -> str:
        """Raises UsageError when there is none, DamagedError."""
        path = self.evaluation_path(split)
        if not os.path.lexists(path):
            raise UsageError(f"there is no {shown(path)}", fix=f"vidi evaluate {shown(self.path)}")
        return _decode(storage.read_file(path), path)

    def evaluation_path(self, split: str) -> Path:
        return self.path / _EVALUATION / f"{_checked_split(split)}.json"

    def evaluated_splits(self) -> tuple[str, ...]:
        """The splits that have an evaluation, by name."""
        folder = self.path / _EVALUATION
        names = (path.stem for path in folder.glob("*.json")) if folder.is_dir() else ()
        return tuple(sorted(name for name in names if _SPLIT_NAME.fullmatch(name)))

    def write_pictures(self, split: str, arrays: Mapping[str, NDArray[Any]]) -> Path:
        """Thumbnails of the worst mistakes: `images` (N, H, W, 3) uint8, `ids` (N,), and others."""
        return self._write_arrays(self.pictures_path(split), arrays)

    def read_pictures(self, split: str) -> dict[str, NDArray[Any]]:
        """Raises UsageError when there are none, DamagedError."""
        return _read_arrays(self.pictures_path(split), "pictures")

    def pictures_path(self, split: str) -> Path:
        return self.path / _EVALUATION / f"{_checked_split(split)}-pictures.npz"

    def write_explained(self, split: str, arrays: Mapping[str, NDArray[Any]]) -> Path:
        """Where the model looked and how it sees images beside each other; see `vidi.explain`."""
        return self._write_arrays(self.explained_path(split), arrays)

    def read_explained(self, split: str) -> dict[str, NDArray[Any]]:
        """Raises UsageError when there are none, DamagedError."""
        return _read_arrays(self.explained_path(split), "explanations")

    def explained_path(self, split: str) -> Path:
        return self.path / _EVALUATION / f"{_checked_split(split)}-explained.npz"

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    def write_report(self, html: str) -> Path:
        """Raises StorageError; the earlier report is then still there."""
        return self._write_result(self.report_path, html.encode("utf-8"))

    @property
    def profile_path(self) -> Path:
        """A trace of a few steps, which Perfetto opens."""
        return self.path / "profile.json.gz"

    def bundle_path(self, target: str = "onnx") -> Path:
        """Where a bundle of this run is put when nobody says where."""
        return self.path / ("bundle" if target == "onnx" else f"bundle-{_checked_split(target)}")

    # Inside

    def _write_skeleton(self) -> None:
        """Everything that a new run has; `run.json` last, it makes the directory a run."""
        disk = self._disk
        for name, text in self._texts.items():
            storage.write_file(self.path / _TEXTS[name], text.encode("utf-8"), disk=disk)
        for log in (self.metrics, self.timing):
            if not os.path.lexists(log.path):
                storage.write_file(log.path, b"", disk=disk)
        storage.make_folder(self.path / _CHECKPOINTS, disk=disk)
        record = {"kind": _KIND, "format": RUN_FORMAT, "vidi": __version__}
        storage.write_file(self.path / _RUN, storage.dump_json(record), disk=disk)

    def _held(self) -> Lock:
        assert self._lock is not None, "this needs `with run.lock():` around it"
        return self._lock

    def _request(
        self,
        step: int,
        files: Mapping[str, Buffer],
        state: Mapping[str, object],
        keep_steps: Collection[int],
    ) -> _Request:
        assert step >= 0, step
        assert _STATE not in files, f"{_STATE} is ours"
        metrics_offset, timing_offset = self.metrics.offset, self.timing.offset
        record = storage.dump_json(
            {
                "format": CHECKPOINT_FORMAT,
                "vidi": __version__,
                "step": step,
                "metrics_offset": metrics_offset,
                "timing_offset": timing_offset,
                "state": dict(state),
            },
            indent=1,
        )
        return _Request(
            step=step,
            members={**files, _STATE: record},
            state=storage.parse_json(record, _STATE)["state"],
            metrics_offset=metrics_offset,
            timing_offset=timing_offset,
            keep_steps=frozenset(keep_steps),
        )

    def _save(self, request: _Request) -> Checkpoint:
        with self._saving:
            notices = self._ready()
            # What the offsets of the checkpoint point to must be on the disk before it is.
            self.metrics.sync()
            self.timing.sync()
            path = self.path / _CHECKPOINTS / _step_folder(request.step)
            manifest = storage.write_folder(path, request.members, disk=self._disk)
            try:
                self._rotate(request.keep_steps | {request.step})
            except StorageError as error:
                notices.append(f"an old checkpoint could not be removed: {error.message}")
        return Checkpoint(
            path=path,
            step=request.step,
            state=request.state,
            metrics_offset=request.metrics_offset,
            timing_offset=request.timing_offset,
            manifest=manifest,
            notices=tuple(notices),
        )

    def _ready(self) -> list[str]:
        """Makes sure that the directory is there and ours. Returns what had to be done for that."""
        lock = self._held()
        notices: list[str] = []
        if not os.path.lexists(self.path / _RUN):
            if self._made_again:
                raise StorageError(
                    f"{shown(self.path)} was deleted during the training, twice",
                    fix="see what deletes it, and choose another place with --out",
                )
            self._made_again = True
            storage.make_folder(self.path, mode=0o700, disk=self._disk)
            lock.confirm()
            for log in (self.metrics, self.timing):
                if not os.path.lexists(log.path):
                    log.restore()
            self._write_skeleton()
            notices.append(f"{shown(self.path)} was deleted during the training; made again")
        lock.confirm()
        storage.make_folder(self.path / _CHECKPOINTS, disk=self._disk)
        return notices

    def _rotate(self, keep: Collection[int]) -> None:
        candidates = self._candidates()
        replaced = {one.step for one in candidates if not one.aside}
        kept = {*sorted({one.step for one in candidates})[-_KEPT_CHECKPOINTS:], *keep}
        storage.discard_folder(
            [
                one.path
                for one in candidates
                if one.step not in kept or (one.aside and one.step in replaced)
            ],
            disk=self._disk,
        )

    def _candidates(self) -> list[_Candidate]:
        """All folders that claim to be checkpoints, the best last."""
        folder = self.path / _CHECKPOINTS
        if folder.is_symlink():
            raise DamagedError(
                f"{shown(folder)} is a symbolic link, which is not followed",
                fix="move the folder itself there; the whole run directory may be a link",
            )
        with storage.explained("cannot read", folder):
            try:
                names = [entry.name for entry in folder.iterdir()]
            except FileNotFoundError:
                return []
        found = [
            _Candidate(folder / name, int(match[1]), aside=match[2] is not None)
            for name in names
            if (match := _STEP_NAME.fullmatch(name))
        ]
        return sorted(found, key=lambda candidate: candidate.rank)

    def _settled(
        self, chosen: _Candidate, found: Checkpoint, damaged: Mapping[_Candidate, str]
    ) -> tuple[Checkpoint, tuple[str, ...]]:
        if self._lock is None:
            return found, tuple(damaged.values())
        sentences = []
        for candidate, reason in damaged.items():
            bad = _free_name(candidate.path)
            with storage.explained("cannot rename", candidate.path):
                self._disk.rename(candidate.path, bad)
            sentences.append(f"{reason} (kept as {bad.name})")
        if chosen.aside:
            path = chosen.path.with_name(_step_folder(chosen.step))
            with storage.explained("cannot rename", chosen.path):
                self._disk.rename(chosen.path, path)
            found = replace(found, path=path)
        storage.discard_folder(
            [one.path for one in self._candidates() if one.aside and one.step == chosen.step],
            disk=self._disk,
        )
        self._tidy()
        return found, tuple(sentences)

    def _tidy(self) -> None:
        for name in ("", _CHECKPOINTS, _PREDICTIONS, _EVALUATION):
            if (self.path / name).is_dir():
                storage.remove_leftovers(self.path / name, disk=self._disk)

    def _write_result(self, path: Path, data: Buffer) -> Path:
        storage.make_folder(path.parent, disk=self._disk)
        storage.write_file(path, data, disk=self._disk)
        return path

    def _write_arrays(self, path: Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as members:
            for name, array in arrays.items():
                if not _ARRAY_NAME.fullmatch(name):
                    raise UsageError(f"{name!r} cannot be the name of an array")
                if array.dtype.hasobject:
                    raise UsageError(
                        f"array {name!r} holds Python objects", fix="make it numbers or text"
                    )
                # An entry made like this carries no clock: equal arrays are equal files.
                entry = zipfile.ZipInfo(f"{name}.npy")
                with members.open(entry, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
        return self._write_result(path, buffer.getbuffer())


@dataclass(frozen=True, slots=True)
class _Request:
    """One checkpoint to be saved."""

    step: int
    members: Mapping[str, Buffer]
    # As it will be read back: tuples are lists, and later changes of the caller's are not seen.
    state: Mapping[str, Any]
    metrics_offset: int
    timing_offset: int
    keep_steps: frozenset[int]


# ---- Saving beside the training ------------------------------------------------------------------


@final
class BackgroundSaver:
    """Saves checkpoints in one thread while the training goes on, one at a time.

    What is handed over must not change until the save is done: hand over copies.

        with run.lock(), BackgroundSaver(run) as saver:
            ...
            saver.start(step, files, state, keep_steps)

    A failed save raises its StorageError at the next `start`, `take` or `close`, once; nothing was
    started then, and the same `start` may be called again.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vidi-save")
        self._future: Future[Checkpoint] | None = None
        self._num_skipped = 0

    @property
    def num_skipped(self) -> int:
        """Saves that were not started because the one before was not done."""
        return self._num_skipped

    @property
    def busy(self) -> bool:
        return self._future is not None and not self._future.done()

    def start(
        self,
        step: int,
        files: Mapping[str, Buffer],
        state: Mapping[str, object],
        keep_steps: Collection[int] = (),
    ) -> bool:
        """As `Run.save_checkpoint`, but returns at once; False: skipped, the last one is not done.

        The logs' offsets are those of this moment. An outcome that was not taken is let go.
        """
        if self.busy:
            self._num_skipped += 1
            return False
        self.take()
        request = self._run._request(step, files, state, keep_steps)
        self._future = self._thread.submit(self._run._save, request)
        return True

    def take(self) -> Checkpoint | None:
        """The checkpoint of a save that is done by now, once. Raises its StorageError, once."""
        if self._future is None or self.busy:
            return None
        future, self._future = self._future, None
        return future.result()

    def wait(self) -> Checkpoint | None:
        """As `take`, after waiting for a save that is under way."""
        if self._future is None:
            return None
        future, self._future = self._future, None
        return future.result()

    def close(self) -> Checkpoint | None:
        """As `wait`, and ends the thread."""
        try:
            return self.wait()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            # The error that is on its way tells more than a save that failed beside it.
            self._thread.shutdown()


# ---- Names ---------------------------------------------------------------------------------------


def data_name(data: str | Path) -> str:
    """What runs and studies on these data are called: the folder, however given, or the name."""
    return Path(data).resolve().name if Path(data).exists() else str(data)


def default_run_path(root: Path | str, dataset_name: str, now: datetime) -> Path:
    """`root/2026-11-22_flowers_a1b2`: a path that does not exist, safe for any name and system."""
    plain = unicodedata.normalize("NFKD", dataset_name).encode("ascii", "ignore").decode("ascii")
    slug = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:40].strip("-") or "images"
    attempt = 0
    while True:
        seed = f"{dataset_name!r} {now.isoformat()} {attempt}"
        path = Path(root) / f"{now:%Y-%m-%d}_{slug}_{hashlib.sha256(seed.encode()).hexdigest()[:4]}"
        if not os.path.lexists(path):
            return path
        attempt += 1


def _checked_split(split: str) -> str:
    if not _SPLIT_NAME.fullmatch(split):
        raise UsageError(
            f"{split!r} cannot be the name of a split",
            fix="use up to 64 of a-z, 0-9, '_', '-' and '.', beginning with a letter or digit",
        )
    return split


def _free_name(path: Path) -> Path:
    """`step-000100.bad`, or `step-000100.bad2` and so on when that is taken."""
    bad = path.with_name(f"{path.name}.bad")
    number = 2
    while os.path.lexists(bad):
        bad = path.with_name(f"{path.name}.bad{number}")
        number += 1
    return bad


# ---- Checks --------------------------------------------------------------------------------------


def _check_texts(texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        if name not in _TEXTS:
            raise UsageError(f"a run has no text {name!r}", fix=f"it has {', '.join(_TEXTS)}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{_TEXTS[name]} cannot hold {text[error.start]!r}, which is no character",
                fix="rename the file or folder whose name is not UTF-8",
            ) from error


def _decode(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedError(f"{shown(path)} is damaged: not UTF-8 at byte {error.start}") from error


def _read_arrays(path: Path, what: str) -> dict[str, NDArray[Any]]:
    if not os.path.lexists(path):
        raise UsageError(f"there are no {what} at {shown(path)}", fix="vidi evaluate makes them")
    try:
        with zipfile.ZipFile(io.BytesIO(storage.read_file(path))) as members:
            # We write them so; a compressed one could be a thousand times larger than the file.
            if any(one.compress_type != zipfile.ZIP_STORED for one in members.infolist()):
                raise DamagedError(f"{shown(path)} is compressed, so not ours")
            return {
                one.filename.removesuffix(".npy"): np.lib.format.read_array(
                    io.BytesIO(members.read(one)), allow_pickle=False
                )
                for one in members.infolist()
            }
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, MemoryError) as error:
        raise DamagedError(
            f"{shown(path)} is damaged: {error}", fix="vidi evaluate writes it again"
        ) from error


# What a creation that was killed can have left, and what systems put into empty places.
_OURS: Final = frozenset({*_TEXTS.values(), _METRICS, _TIMING, _CHECKPOINTS, _LOCK})
_SYSTEMS: Final = frozenset({"lost+found", ".DS_Store"})


def _refuse_foreign(path: Path) -> None:
    """Raises UsageError unless a run can be created at `path`."""
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise UsageError(f"{shown(path)} is a file", fix="name a folder that does not exist yet")
    if os.path.lexists(path / _RUN):
        raise UsageError(f"{shown(path)} is a run already", fix="open it, or name another folder")
    with storage.explained("cannot read", path):
        names = {entry.name for entry in path.iterdir()}
        begun = path / _CHECKPOINTS
        if begun.is_dir() and any(begun.iterdir()):
            raise UsageError(
                f"{shown(path)} has checkpoints but no {_RUN}",
                fix=f"put {_RUN} back from a copy, or name another folder",
            )
    foreign = sorted(name for name in names - _OURS - _SYSTEMS if not storage.is_leftover(name))
    if foreign:
        more = ", ..." if len(foreign) > 3 else ""
        raise UsageError(
            f"{shown(path)} is not empty: {', '.join(map(shown, foreign[:3]))}{more}",
            fix="name a folder that does not exist yet",
        )


_IMAGES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def _not_a_run(path: Path) -> UsageError:
    """The error that says what stands there instead, and where the run may be."""
    what, fix = _looks_like(path)
    return UsageError(f"{shown(path)} is not a run: {what}", fix=fix)


def _looks_like(path: Path) -> tuple[str, str]:
    if not os.path.lexists(path):
        return "it does not exist", _nearest(path)
    if not path.is_dir():
        return "it is a file", "name the run's directory"
    for above in path.absolute().parents[:3]:
        if os.path.lexists(above / _RUN):
            return "it is a part of one", f"name the run itself: {shown(above)}"
    with storage.explained("cannot read", path):
        names = sorted(entry.name for entry in path.iterdir())
    if "bundle.json" in names:
        return "it is a bundle, made to predict with", "vidi predict takes it; or name a run"
    if "study.db" in names:
        return "it is a study", f"its runs are in {shown(path / 'trials')}, its best in 'final'"
    runs = [name for name in names if os.path.lexists(path / name / _RUN)]
    if runs:
        return f"it is a folder of {len(runs)} runs", f"name one: {shown(path / runs[-1])}"
    if not names or set(names) <= _OURS:
        return "it is empty", "vidi train makes runs"
    if _has_images(path):
        return "it is a folder of images", "vidi train takes it and makes a run"
    return f"it has no {_RUN}", "name a directory that vidi train made"


def _nearest(path: Path) -> str:
    runs = path.parent.glob(f"*/{_RUN}") if path.parent.is_dir() else ()
    names = sorted((found.parent.name for found in runs), reverse=True)
    close = difflib.get_close_matches(path.name, names, n=1) or names[:1]
    return f"did you mean {shown(path.parent / close[0])}?" if close else "vidi train makes runs"


def _has_images(path: Path) -> bool:
    files = itertools.chain(path.glob("*"), path.glob("*/*"), path.glob("*/*/*"))
    # A few thousand names tell; a data set may have millions.
    return any(file.suffix.lower() in _IMAGES for file in itertools.islice(files, 5000))
