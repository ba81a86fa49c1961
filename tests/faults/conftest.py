"""Disks that fail, lie, or lose their power: what `vidi.storage.Disk` is replaced by in tests.

`CrashDisk` does every operation for real and keeps a model beside it of what a power loss at that
moment could leave: data that was not flushed may be lost, torn or zeros, names that were not
flushed may be lost one by one. `CrashDisk.leave` writes such an outcome into another folder.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, final

import pytest

from vidi.storage import Buffer, LocalDisk

DataLoss = Literal["lost", "half", "zeros", "kept"]
NameLoss = Literal["lost", "first half", "last half", "even", "odd", "kept"]
DATA_LOSSES: tuple[DataLoss, ...] = ("lost", "half", "zeros", "kept")
NAME_LOSSES: tuple[NameLoss, ...] = ("lost", "first half", "last half", "even", "odd", "kept")


class PowerLost(BaseException):
    """Nothing runs after this; not an Exception, so that no clean-up mistakes it for one."""


@dataclass
class ModelFile:
    """A file: what a flush made durable, and what a running system sees."""

    durable: bytes = b""
    current: bytes = b""

    def after(self, loss: DataLoss) -> bytes:
        if loss == "kept" or self.durable == self.current:
            return self.current
        if loss == "lost":
            return self.durable
        if not self.current.startswith(self.durable):
            # It was cut shorter: that is on the disk, or it is not.
            return self.current if loss == "half" else self.durable
        fresh = self.current[len(self.durable) :]
        kept = fresh[: len(fresh) // 2] if loss == "half" else bytes(len(fresh))
        return self.durable + kept


@dataclass
class ModelFolder:
    """A folder: the names that a flush made durable, those seen, and the changes in between."""

    durable: dict[str, ModelFile | ModelFolder] = field(default_factory=dict)
    current: dict[str, ModelFile | ModelFolder] = field(default_factory=dict)
    pending: list[tuple[str | None, str | None, ModelFile | ModelFolder | None]] = field(
        default_factory=list
    )

    def change(
        self, gone: str | None, come: str | None, node: ModelFile | ModelFolder | None
    ) -> None:
        self.pending.append((gone, come, node))
        _apply(self.current, gone, come, node)

    def flush(self) -> None:
        self.durable = dict(self.current)
        self.pending = []

    def after(self, loss: NameLoss) -> dict[str, ModelFile | ModelFolder]:
        names = dict(self.durable)
        for index, change in enumerate(self.pending):
            if _is_kept(index, len(self.pending), loss):
                _apply(names, *change)
        return names


def _apply(
    names: dict[str, ModelFile | ModelFolder],
    gone: str | None,
    come: str | None,
    node: ModelFile | ModelFolder | None,
) -> None:
    if gone is not None:
        names.pop(gone, None)
    if come is not None and node is not None:
        names[come] = node


def _is_kept(index: int, total: int, loss: NameLoss) -> bool:
    match loss:
        case "lost":
            return False
        case "kept":
            return True
        case "first half":
            return index < (total + 1) // 2
        case "last half":
            return index >= total // 2
        case "even":
            return index % 2 == 0
        case "odd":
            return index % 2 == 1


@final
class CrashDisk:
    """Stops after `stop_after` operations; `root` is the only folder that it knows."""

    def __init__(self, root: Path, *, stop_after: int | None = None) -> None:
        self._root = root
        self._stop_after = stop_after
        self._disk = LocalDisk()
        self._top = _scan(root)
        self._open: dict[int, ModelFile] = {}
        self.operations: list[str] = []

    def create(self, path: Path) -> int:
        self._count("create", path)
        descriptor = self._disk.create(path)
        self._open[descriptor] = node = ModelFile()
        self._folder(path.parent).change(None, path.name, node)
        return descriptor

    def open_append(self, path: Path) -> int:
        self._count("open_append", path)
        descriptor = self._disk.open_append(path)
        folder = self._folder(path.parent)
        if path.name not in folder.current:
            folder.change(None, path.name, ModelFile())
        node = folder.current[path.name]
        assert isinstance(node, ModelFile)
        self._open[descriptor] = node
        return descriptor

    def write(self, descriptor: int, data: Buffer) -> None:
        self._count("write")
        self._disk.write(descriptor, data)
        self._open[descriptor].current += bytes(data)

    def truncate(self, descriptor: int, size: int) -> None:
        self._count("truncate")
        self._disk.truncate(descriptor, size)
        node = self._open[descriptor]
        node.current = node.current[:size]

    def fsync(self, descriptor: int) -> None:
        # The real one is left out: the model knows what it would have done.
        self._count("fsync")
        node = self._open[descriptor]
        node.durable = node.current

    def close(self, descriptor: int) -> None:
        # Dying closes files too: neither counted nor stopped.
        self._open.pop(descriptor)
        self._disk.close(descriptor)

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        self._count("mkdir", path)
        self._disk.mkdir(path, mode)
        self._folder(path.parent).change(None, path.name, ModelFolder())

    def rename(self, source: Path, target: Path) -> None:
        assert source.parent == target.parent, "a rename between folders is not atomic for us"
        self._count("rename", target)
        self._disk.rename(source, target)
        folder = self._folder(source.parent)
        folder.change(source.name, target.name, folder.current[source.name])

    def unlink(self, path: Path) -> None:
        self._count("unlink", path)
        self._disk.unlink(path)
        self._folder(path.parent).change(path.name, None, None)

    def rmdir(self, path: Path) -> None:
        self._count("rmdir", path)
        self._disk.rmdir(path)
        self._folder(path.parent).change(path.name, None, None)

    def fsync_dir(self, path: Path) -> None:
        self._count("fsync_dir", path)
        self._folder(path).flush()

    def leave(self, target: Path, data: DataLoss, names: NameLoss) -> None:
        """Writes what a power loss left, when it treats what was not flushed like that."""
        _leave(self._top, target, data, names)

    def fingerprint(self, data: DataLoss, names: NameLoss) -> object:
        """Equal for equal outcomes."""
        return _fingerprint(self._top, data, names)

    def _count(self, kind: str, path: Path | None = None) -> None:
        if self._stop_after is not None and len(self.operations) >= self._stop_after:
            raise PowerLost
        self.operations.append(f"{kind} {path.name if path else ''}".strip())

    def _folder(self, path: Path) -> ModelFolder:
        node = self._top
        for name in path.relative_to(self._root).parts:
            below = node.current[name]
            assert isinstance(below, ModelFolder)
            node = below
        return node


def _scan(folder: Path) -> ModelFolder:
    names: dict[str, ModelFile | ModelFolder] = {}
    for path in folder.iterdir():
        if path.is_dir():
            names[path.name] = _scan(path)
        else:
            data = path.read_bytes()
            names[path.name] = ModelFile(data, data)
    return ModelFolder(durable=dict(names), current=dict(names))


def _leave(folder: ModelFolder, target: Path, data: DataLoss, names: NameLoss) -> None:
    target.mkdir()
    for name, node in folder.after(names).items():
        if isinstance(node, ModelFolder):
            _leave(node, target / name, data, names)
        else:
            (target / name).write_bytes(node.after(data))


def _fingerprint(folder: ModelFolder, data: DataLoss, names: NameLoss) -> object:
    return frozenset(
        (
            name,
            _fingerprint(node, data, names) if isinstance(node, ModelFolder) else node.after(data),
        )
        for name, node in folder.after(names).items()
    )


@final
class FailingDisk:
    """Raises OSError where `fails(index, kind)` gives an error number; else does as it is told.

    `corrupts` makes each write put other bytes on the disk, without a word.
    """

    def __init__(
        self,
        fails: Callable[[int, str], int | None] = lambda _index, _kind: None,
        *,
        corrupts: bool = False,
    ) -> None:
        self._fails = fails
        self._corrupts = corrupts
        self._disk = LocalDisk()
        self.operations: list[str] = []
        self.created: list[Path] = []

    def create(self, path: Path) -> int:
        self._count("create")
        self.created.append(path)
        return self._disk.create(path)

    def open_append(self, path: Path) -> int:
        self._count("open_append")
        return self._disk.open_append(path)

    def write(self, descriptor: int, data: Buffer) -> None:
        try:
            self._count("write")
        except OSError:
            # A full disk takes what still fits.
            self._disk.write(descriptor, bytes(data)[: len(bytes(data)) // 2])
            raise
        if self._corrupts:
            data = bytes([bytes(data)[0] ^ 1]) + bytes(data)[1:]
        self._disk.write(descriptor, data)

    def truncate(self, descriptor: int, size: int) -> None:
        self._count("truncate")
        self._disk.truncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        assert os.fstat(descriptor)
        self._count("fsync")

    def close(self, descriptor: int) -> None:
        self._disk.close(descriptor)

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        self._count("mkdir")
        self._disk.mkdir(path, mode)

    def rename(self, source: Path, target: Path) -> None:
        self._count("rename")
        self._disk.rename(source, target)

    def unlink(self, path: Path) -> None:
        self._count("unlink")
        self._disk.unlink(path)

    def rmdir(self, path: Path) -> None:
        self._count("rmdir")
        self._disk.rmdir(path)

    def fsync_dir(self, path: Path) -> None:
        assert path.is_dir()
        self._count("fsync_dir")

    def _count(self, kind: str) -> None:
        index = len(self.operations)
        self.operations.append(kind)
        number = self._fails(index, kind)
        if number is not None:
            raise OSError(number, os.strerror(number))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def crash_disk() -> type[CrashDisk]:
    return CrashDisk


@pytest.fixture
def failing_disk() -> type[FailingDisk]:
    return FailingDisk


@pytest.fixture
def power_lost() -> type[PowerLost]:
    return PowerLost


@pytest.fixture
def losses() -> list[tuple[DataLoss, NameLoss]]:
    """Every way in which the model can treat what was not flushed."""
    return [(data, names) for data in DATA_LOSSES for names in NAME_LOSSES]


@pytest.fixture
def read_tree() -> Callable[[Path], dict[str, bytes]]:
    return tree


@pytest.fixture(params=[errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES])
def disk_error(request: pytest.FixtureRequest) -> int:
    return int(request.param)
