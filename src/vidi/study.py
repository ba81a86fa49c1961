"""A study: one directory that holds a search over settings, and the only state that a search has.

This is the only module that knows the names of its files. The truth about a trial is its own small
file, rewritten durably; the database beside them is a mirror for dashboards. Each trial is an
ordinary run. Whoever works in a study holds its lock; whoever reads it needs none.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, Self, final, get_args

from vidi import __version__, storage
from vidi.config import Config, parse
from vidi.errors import DamagedError, MismatchError, UsageError
from vidi.run import RecordLog, Run, default_run_path
from vidi.storage import DISK, Disk, Lock, NewerFormatError, shown

__all__ = ["Kind", "Rung", "Status", "Study", "Trial", "default_study_path"]

STUDY_FORMAT: Final = 1

Kind = Literal["tune", "fit", "ablate"]
Status = Literal["waiting", "running", "paused", "finished", "failed"]

_STUDY: Final = "study.json"
_CONFIG: Final = "config.toml"
_DATABASE: Final = "study.db"
_EVENTS: Final = "events.jsonl"
_TRIALS: Final = "trials"
_BEST: Final = "best.toml"
_FINAL: Final = "final"
_RETRAINED: Final = "retrained"
_REPORT: Final = "report.html"
_LOCK: Final = "lock"
_SPENT: Final = "spent_s"
_TRIAL_NAME: Final = re.compile(r"([0-9]{4,9})\.json")

# What a creation that was killed can have left.
_OURS: Final = frozenset({_CONFIG, _EVENTS, _TRIALS, _LOCK})


@dataclass(frozen=True, slots=True)
class Rung:
    """What a trial was worth at a step, on the validation images.

    log_loss: None where it was not finite. seconds: that all the work up to here took, summed over
    interruptions.
    """

    step: int
    accuracy: float
    log_loss: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of settings and what became of it.

    number: from 1. settings: by the dotted names of `Config`, on top of the study's config.
    origin: why it is tried, in words: "the default", "suggested by tpe". parameters: what a sampler
    was asked for, where these are not the settings themselves. reason: why its status is what it
    is. retries: how often its process died under it.
    """

    number: int
    settings: Mapping[str, Any]
    status: Status = "waiting"
    origin: str = ""
    reason: str = ""
    rungs: tuple[Rung, ...] = ()
    retries: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> Rung | None:
        """The latest result; None before the first."""
        return self.rungs[-1] if self.rungs else None

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.status in ("finished", "failed")

    def with_rung(self, rung: Rung) -> Trial:
        """The same trial with one result more; a result of the same step is replaced."""
        before = tuple(one for one in self.rungs if one.step < rung.step)
        return replace(self, rungs=(*before, rung))


@final
class Study:
    """One study directory. Make one with `Study.create` or `Study.open`."""

    def __init__(
        self, path: Path, kind: Kind, asked: Mapping[str, Any], config: Config, disk: Disk
    ) -> None:
        """Use `create` or `open`."""
        self.path = path
        self.kind = kind
        # What was asked besides the config, as JSON.
        self.asked = dict(asked)
        # What was decided from it once, such as the length of a trial, as JSON; see `decide`.
        self.decided: dict[str, Any] = {}
        self.config = config
        self.events = RecordLog(path / _EVENTS, disk=disk)
        self._disk = disk
        self._lock: Lock | None = None

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        kind: Kind,
        config: Config,
        asked: Mapping[str, object],
        disk: Disk = DISK,
    ) -> Self:
        """A new study at `path`, which must not exist or be empty.

        asked: everything else that decides what the study does, as JSON: the space, the seed, ...

        A creation that was killed is done anew. Raises UsageError, InUseError, StorageError.
        """
        path = Path(path)
        cls.check_free(path)
        storage.make_folder(path, mode=0o700, disk=disk)
        lock = Lock(path / _LOCK)
        lock.acquire()
        try:
            cls.check_free(path)
            study = cls(path, kind, asked, config, disk)
            storage.write_file(path / _CONFIG, config.to_toml().encode("utf-8"), disk=disk)
            if not os.path.lexists(path / _EVENTS):
                storage.write_file(path / _EVENTS, b"", disk=disk)
            storage.make_folder(path / _TRIALS, disk=disk)
            # Last: it makes the directory a study.
            study._write_record()
        finally:
            lock.release()
        return study

    @classmethod
    def open(cls, path: Path | str, *, disk: Disk = DISK) -> Self:
        """The study at `path`.

        Raises UsageError when there is none; DamagedError when it is damaged or newer than this
        vidi.
        """
        path = Path(path)
        if not cls.exists(path):
            raise UsageError(
                f"{shown(path)} is not a study: it has no {_STUDY}", fix="vidi tune makes studies"
            )
        where = shown(path / _STUDY)
        record = storage.parse_json(storage.read_file(path / _STUDY, limit_bytes=1 << 24), where)
        if not isinstance(record, dict) or record.get("kind") not in get_args(Kind):
            raise DamagedError(f"{where} is not the {_STUDY} of a vidi study")
        if record.get("format") != STUDY_FORMAT:
            raise NewerFormatError(
                f"{shown(path)} is a study of format {record.get('format')}, written by vidi "
                f"{record.get('vidi')}; this is vidi {__version__}, which reads format "
                f"{STUDY_FORMAT}",
                fix=f"install vidi {record.get('vidi')} or later",
            )
        if not isinstance(record.get("asked"), dict):
            raise DamagedError(f"{where} does not say what was asked")
        try:
            text = storage.read_file(path / _CONFIG).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DamagedError(f"{shown(path / _CONFIG)} is damaged: not UTF-8") from error
        config = parse(text, origin=str(path / _CONFIG))
        study = cls(path, record["kind"], record["asked"], config, disk)
        study.decided = dict(record.get("decided", {}))
        return study

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Whether `open` would find a study, whole or damaged, and not a place to create one."""
        return os.path.lexists(Path(path) / _STUDY)

    @staticmethod
    def check_free(path: Path | str) -> None:
        """Raises UsageError unless a study can be created at `path`: nothing foreign is there."""
        path = Path(path)
        if not os.path.lexists(path):
            return
        if not path.is_dir():
            raise UsageError(f"{shown(path)} is a file", fix="name a folder that does not exist")
        if Study.exists(path):
            raise UsageError(
                f"{shown(path)} is a study already", fix="open it, or name another folder"
            )
        with storage.explained("cannot read", path):
            names = {entry.name for entry in path.iterdir()}
        foreign = sorted(name for name in names - _OURS if not storage.is_leftover(name))
        if foreign:
            more = ", ..." if len(foreign) > 3 else ""
            raise UsageError(
                f"{shown(path)} is not empty: {', '.join(map(shown, foreign[:3]))}{more}",
                fix="name a folder that does not exist yet",
            )

    def __repr__(self) -> str:
        return f"Study({str(self.path)!r})"

    def go_on(
        self,
        config: Config,
        asked: Mapping[str, object],
        *,
        kind: Kind,
        may_change: Collection[str] = (),
    ) -> None:
        """Checks that the study asks for the same as before; needs the lock.

        may_change: names in `asked` that may differ, such as "minutes"; they are written down anew.

        Raises MismatchError that names every field that differs.
        """
        if kind != self.kind:
            raise MismatchError(
                f"{shown(self.path)} was made by `vidi {self.kind}`, not by `vidi {kind}`",
                fix="give another --out",
            )
        now = storage.parse_json(storage.dump_json(dict(asked)), "asked")
        before_flat = {**_flat(_tree(self.config)), **_flat(self.asked)}
        now_flat = {**_flat(_tree(config)), **_flat(now)}
        differing = sorted(
            name
            for name in before_flat.keys() | now_flat.keys()
            if before_flat.get(name) != now_flat.get(name)
        )
        refused = [name for name in differing if name.split(".")[0] not in may_change]
        if refused:
            told = "; ".join(
                f"{name} was {before_flat.get(name, 'not given')!r}, "
                f"now {now_flat.get(name, 'not given')!r}"
                for name in refused[:5]
            )
            more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
            raise MismatchError(
                f"{shown(self.path)} cannot be continued: {told}{more}",
                fix="give a new --out to start afresh, or ask for the same as before",
            )
        if differing:
            self._held()
            self.asked = now
            self._write_record()

    def decide(self, **decided: object) -> None:
        """Writes down what was decided from measurements, for whoever continues. Needs the lock."""
        self._held()
        self.decided = storage.parse_json(storage.dump_json({**self.decided, **decided}), "decided")
        self._write_record()

    # Lock

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Nobody else works in this study meanwhile. Raises InUseError that names pid and host."""
        lock = Lock(self.path / _LOCK)
        lock.acquire()
        self._lock = lock
        try:
            for folder in (self.path, self.path / _TRIALS):
                if folder.is_dir():
                    storage.remove_leftovers(folder, disk=self._disk)
            yield
        finally:
            self._lock = None
            self.events.close()
            lock.release()

    # Trials

    def trials(self) -> tuple[Trial, ...]:
        """All trials by number.

        Raises DamagedError, naming every file that is not as it was written.
        """
        folder = self.path / _TRIALS
        with storage.explained("cannot read", folder):
            names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        found: list[Trial] = []
        damaged: list[str] = []
        for name in names:
            if match := _TRIAL_NAME.fullmatch(name):
                try:
                    found.append(_read_trial(folder / name, int(match[1])))
                except DamagedError as error:
                    damaged.append(error.message)
        if damaged:
            raise DamagedError(
                "; ".join(damaged),
                fix="put it back from a copy, or delete it with its folder: it is then tried anew",
            )
        return tuple(sorted(found, key=lambda trial: trial.number))

    def write_trial(self, trial: Trial) -> None:
        """Writes it durably in the place of what was known of it. Needs the lock.

        Raises StorageError; what was known before is then still there.
        """
        self._held()
        body = storage.dump_json(asdict(trial))
        record = {"sha256": storage.sha256(body), "trial": storage.parse_json(body, "trial")}
        storage.make_folder(self.path / _TRIALS, disk=self._disk)
        storage.write_file(
            self.path / _TRIALS / f"{trial.number:04d}.json",
            storage.dump_json(record, indent=1),
            disk=self._disk,
        )

    def discard_trial(self, number: int) -> None:
        """Takes a trial back, its run too. Needs the lock. Raises StorageError."""
        self._held()
        record = self.path / _TRIALS / f"{number:04d}.json"
        # Its run goes first: a trial that is begun anew has to find none.
        found = [path for path in (self.trial_run_path(number), record) if os.path.lexists(path)]
        storage.discard_folder(found, disk=self._disk)

    def trial_run_path(self, number: int) -> Path:
        """Where the run of a trial is, or will be."""
        return self.path / _TRIALS / f"{number:04d}"

    def trial_run(self, number: int) -> Run:
        """The run of a trial. Raises UsageError when it never began, DamagedError."""
        return Run.open(self.trial_run_path(number), disk=self._disk)

    def note(self, event: str, **about: object) -> None:
        """Adds to the log of what happened and why. Needs the lock.

        about: JSON, such as trial=3 and why="...". A time is added: seconds since 1970.
        """
        self._held()
        self.events.append({"event": event, "at": round(time.time(), 3), **about})

    def keep_spent(self, seconds: float) -> None:
        """Writes down how long has been worked in it by now; meant to be called again and again.

        It is there after a kill, and after a loss of power as of a little earlier: nothing waits
        for the disk. Any thread may call it. Raises OSError.
        """
        descriptor = os.open(self.path / _SPENT, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            # Always as many bytes, by one call: it cannot be half there.
            os.write(descriptor, f"{seconds:015.3f}\n".encode())
        finally:
            os.close(descriptor)

    def spent_s(self) -> float:
        """What was written last by `keep_spent`; 0 where there is nothing that can be read."""
        try:
            return max(0.0, float((self.path / _SPENT).read_text("ascii")))
        except (OSError, ValueError):
            return 0.0

    def discard_unbegun(self) -> None:
        """Removes the folder where no trial was begun: there is nothing to continue."""
        if not self.trials():
            storage.discard_folder([self.path])

    # Results

    @property
    def final_path(self) -> Path:
        """The run that is the answer."""
        return self.path / _FINAL

    @property
    def retrained_path(self) -> Path:
        """Where the answer is trained once more, on the validation images too, until it is done."""
        return self.path / _RETRAINED

    @property
    def database_path(self) -> Path:
        return self.path / _DATABASE

    @property
    def database_url(self) -> str:
        """For Optuna and its dashboard."""
        return f"sqlite:///{self.database_path.resolve()}"

    @property
    def best_path(self) -> Path:
        """The best settings so far, ready for `vidi train --config`."""
        return self.path / _BEST

    def write_best(self, config: Config, *, about: Sequence[str] = ()) -> Path:
        """Raises StorageError; the earlier one is then still there.

        about: lines for whoever reads it, as comments above the settings.
        """
        comments = "".join(f"# {line}\n" for line in about)
        return self._write(self.best_path, comments + config.to_toml())

    @property
    def report_path(self) -> Path:
        return self.path / _REPORT

    def write_report(self, html: str) -> Path:
        """Raises StorageError; the earlier report is then still there."""
        return self._write(self.report_path, html)

    # Inside

    def _write(self, path: Path, text: str) -> Path:
        storage.write_file(path, text.encode("utf-8"), disk=self._disk)
        return path

    def _write_record(self) -> None:
        record = {
            "kind": self.kind,
            "format": STUDY_FORMAT,
            "vidi": __version__,
            "asked": self.asked,
            "decided": self.decided,
        }
        storage.write_file(self.path / _STUDY, storage.dump_json(record, indent=1), disk=self._disk)

    def _held(self) -> Lock:
        assert self._lock is not None, "this needs `with study.lock():` around it"
        return self._lock


def default_study_path(root: Path | str, dataset_name: str, now: datetime) -> Path:
    """`root/2026-11-22_flowers_a1b2`: a path that does not exist, safe for any name and system."""
    return default_run_path(root, dataset_name, now)


def _read_trial(path: Path, number: int) -> Trial:
    where = shown(path)
    record = storage.parse_json(storage.read_file(path, limit_bytes=1 << 24), where)
    try:
        body = record["trial"]
        if storage.sha256(storage.dump_json(body)) != record["sha256"]:
            raise DamagedError(f"{where} has changed since it was written (other SHA-256)")
        trial = Trial(**{**body, "rungs": tuple(Rung(**rung) for rung in body["rungs"])})
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{where} has not what a trial has") from error
    if trial.number != number or trial.status not in get_args(Status):
        raise DamagedError(f"{where} holds trial {trial.number}, {shown(str(trial.status))}")
    return trial


def _tree(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"data": {"cache_dir"}, "machine": True})


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects by dotted names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
