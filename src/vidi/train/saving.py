"""Checkpoints beside the training, and the way back to one."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self, final

from vidi.errors import StorageError, TrainingError
from vidi.run import BackgroundSaver, Run
from vidi.train.ranks import AGREE_EVERY_STEPS, ALONE, Ranks
from vidi.train.state import Best, State

# A disk that refuses so many saves in a row will refuse the next one too.
MAX_FAILED_SAVES = 3
# A model that breaks after so many returns to a checkpoint will break again.
MAX_ROLLBACKS = 3


def save(state: State, run: Run | None) -> None:
    """Write the state as a checkpoint, durably, before returning.

    `run`: None in every process but the first, which alone writes. Where the state is divided
    between them, all call this.

    Raises:
        StorageError: it could not be written; earlier checkpoints are as they were.
    """
    if run is None and not state.is_sharded:
        return
    files = state.files()
    if run is not None:
        saved = run.save_checkpoint(state.step, files, state.counters(), keep_steps=_kept(state))
        state.notes += saved.notices


@final
class Saver:
    """Checkpoints by the clock and after validations, written while training goes on.

    A save that fails is told and counted; after three in a row it raises. Nothing that is not
    finite is ever written.
    """

    def __init__(self, run: Run | None, every_s: float, ranks: Ranks = ALONE) -> None:
        """`run`: None in every process but the first, which alone writes."""
        self._run = run
        self._every_s = every_s
        self._ranks = ranks
        self._background = None if run is None else BackgroundSaver(run)
        self._last_at = time.perf_counter()
        self._failures = 0
        # The step that is on the disk or on its way there, and what was best then.
        self._saved_step = -1
        self._saved_best: Best | None = None
        # What was best at the last save that succeeded: its weights are on the disk.
        self._safe_best: Best | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._background is not None:
            self._background.__exit__(kind, error, traceback)

    def save(self, state: State, *, now: bool = False, wait: bool = False) -> list[str] | None:
        """Save when it is time to; `now` in any case; with `wait`, before this returns.

        Returns what the user should know of it, or None when nothing was done.

        Raises:
            StorageError: three saves in a row failed.
            TrainingError: the state is not finite, and returning to a checkpoint does not help.
        """
        if self._background is None and not state.is_sharded:
            return None
        if not (now or wait or self._is_time(state)):
            return None
        notes = self._settled(state)
        if self._is_missing(state) and self._is_sound(state):
            files = state.files()
            if self._background is not None:
                self._background.start(state.step, files, state.counters(), keep_steps=_kept(state))
            self._saved_step, self._saved_best = state.step, state.best
        if wait:
            notes += self._settled(state)
        self._last_at = time.perf_counter()
        return notes

    def _is_time(self, state: State) -> bool:
        """Whether the last save is long ago; of several processes the first has the clock."""
        due = self._background is not None and time.perf_counter() - self._last_at >= self._every_s
        if due and self._background is not None and self._background.busy:
            # A slow disk: this one is left out.
            self._last_at = time.perf_counter()
            due = False
        if not state.is_sharded:
            return due
        # All of them take part, or they would wait for each other.
        return state.step % AGREE_EVERY_STEPS == 0 and bool(self._ranks.largest(int(due)))

    def _is_missing(self, state: State) -> bool:
        """Whether this step is neither on the disk nor on its way there."""
        missing = self._saved_step != state.step
        return bool(self._ranks.largest(int(missing))) if state.is_sharded else missing

    def roll_back(self, state: State) -> bool:
        """Weights, average and optimizer as at the newest checkpoint; False when that cannot be,
        because there is none or it has been done too often.

        The counters stay: the run goes on where it is, past the batches that led here.
        """
        self._settled(state)
        newest = None if self._run is None else self._run.newest_checkpoint()[0]
        checkpoint = self._ranks.checkpoint_from_first(newest)
        if checkpoint is None or state.rollbacks >= MAX_ROLLBACKS:
            return False
        state.restore_tensors(checkpoint)
        state.rollbacks += 1
        state.consecutive_skips = 0
        state.notes.append(
            f"step {state.step}: weights and optimizer were taken back to those of step "
            f"{checkpoint.step}"
        )
        return True

    def _settled(self, state: State) -> list[str]:
        """Wait for a save that is under way; what went wrong, in words."""
        if self._background is None:
            return []
        try:
            done = self._background.wait()
        except StorageError as error:
            self._failures += 1
            if state.best is not None and state.best.step == self._saved_step:
                # Its weights are nowhere: the best are those that are on the disk.
                state.best = self._safe_best
            self._saved_step = -1
            if self._failures >= MAX_FAILED_SAVES:
                raise StorageError(
                    f"{self._failures} checkpoints in a row could not be written: {error.message}",
                    fix="free or repair the disk; then the same command continues",
                ) from error
            return [f"checkpoint not written: {error.message}"]
        if done is not None:
            self._failures = 0
            self._safe_best = self._saved_best
            state.notes += done.notices
        return []

    def _is_sound(self, state: State) -> bool:
        """Whether the state can be written; what is not finite is mended where that can be."""
        broken = state.broken()
        if broken == "the average":
            assert state.average is not None
            state.average.reset(state.model)
            state.notes.append(f"step {state.step}: the average was not finite and begins anew")
        elif broken:
            state.notes.append(f"step {state.step}: {broken} was not finite, and was not saved")
            # With others, all would have to go back at the same step; they start again instead.
            if not self._ranks.alone or not self.roll_back(state):
                raise TrainingError(
                    f"training diverged: {broken} holds numbers that are not finite at step "
                    f"{state.step}",
                    fix="lower the learning rate: --set train.learning_rate=..., or set "
                    "train.clip_norm=1.0",
                )
        return True


def _kept(state: State) -> tuple[int, ...]:
    return () if state.best is None else (state.best.step,)
