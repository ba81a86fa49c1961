"""What a worker does: it opens the data once and advances trials, one after another.

A message in is a JSON object that says what to do; messages out say how far it is, and the last
one what came of it. The same session runs in a process beside the search and on a Ray cluster.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, final

from vidi import storage
from vidi.config import Config, parse
from vidi.errors import Interrupted, UsageError, VidiError
from vidi.run import Run
from vidi.train.loop import Progress
from vidi.train.prepare import check_names
from vidi.train.retrain import retrain
from vidi.train.trial import (
    Shared,
    advance,
    conclude,
    copy_run,
    keep_answers,
    shorten,
    train_and_answer,
)
from vidi.tune.rungs import Fidelity, settings_of

# Progress is told at most so often; a worker that tells nothing for long is taken to hang.
TELL_EVERY_S: Final = 0.5
# How long the first steps are timed, to know what a trial costs.
TIMED_S: Final = 3.0

# A step that takes so many times as long as most was a pause of the machine, not a step.
PAUSE_TIMES: Final = 20.0

Send = Callable[[Mapping[str, Any]], None]


def step_s(moments: Sequence[float]) -> float:
    """Seconds of a step by the moments at which steps were done, without pauses of the machine; 0
    where there are too few of them to tell.

    The mean, not the median: batches are made several at a time, so some steps wait for many.
    """
    steps = [after - before for before, after in itertools.pairwise(moments)]
    if not steps:
        return 0.0
    longest = PAUSE_TIMES * statistics.median(steps)
    return statistics.fmean(step for step in steps if step <= longest)


@final
class Session:
    """The data of one search, open, and what is done with them."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._shared: Shared | None = None
        self._told_at = 0.0

    def handle(self, message: Mapping[str, Any]) -> None:
        """Does what `message["do"]` names, and sends what came of it, errors too.

        Raises Interrupted only, after it was sent.
        """
        try:
            match message["do"]:
                case "open":
                    answer = self._open(message)
                case "time":
                    answer = self._time(message)
                case "advance":
                    answer = self._advance(message)
                case "train":
                    answer = self._train(message)
                case "answers":
                    answer = self._answers(message)
                case "finish":
                    answer = self._finish(message)
                case "conclude":
                    answer = self._conclude(message)
                case "retrain":
                    answer = self._retrain(message)
                case other:
                    raise UsageError(f"a worker cannot {other!r}")
        except Interrupted as error:
            self._send({"kind": "stopped", "message": error.message})
            raise
        except VidiError as error:
            self._send(
                {
                    "kind": "failed",
                    "error": type(error).__name__,
                    "message": error.message,
                    "fix": error.fix,
                    "exit_code": error.exit_code,
                }
            )
        except Exception as error:
            self._send(
                {
                    "kind": "failed",
                    "error": type(error).__name__,
                    "message": f"{type(error).__name__}: {error}",
                    "fix": "",
                    "exit_code": 6,
                }
            )
        else:
            self._send({"kind": "done", **answer})

    def close(self) -> None:
        if self._shared is not None:
            self._shared.close()

    def _open(self, message: Mapping[str, Any]) -> dict[str, Any]:
        config = parse(message["config"], origin="the search's config")
        # Names that no trial could use are found now, not when one fails of them.
        for name, value in message.get("tried", ()):
            check_names(config.with_settings({name: value}))
        self._shared = Shared(message["data"], config, say=self._say)
        facts = self._shared.facts
        return {"facts": facts.model_dump(mode="json")}

    def _time(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial of that config costs, measured on its first steps, which are thrown away."""
        config = parse(message["config"], origin="the search's config")
        with tempfile.TemporaryDirectory(prefix="vidi-time-") as folder:
            moments: list[float] = []

            def tell(what: str | Progress) -> None:
                self._tell(what)
                if isinstance(what, Progress) and what.phase == "train":
                    moments.append(time.monotonic())

            began_at = time.monotonic()
            result = advance(
                Path(folder) / "run",
                self._opened(),
                config,
                deadline=began_at + float(message.get("seconds", TIMED_S)),
                tell=tell,
            )
            took_s = time.monotonic() - began_at
        return {
            "seconds_per_step": step_s(moments) or took_s / max(1, result.step),
            "horizon_steps": result.horizon_steps,
        }

    def _advance(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """One trial, up to a rung or the end."""
        config = self._config_of(message)
        left_s = message.get("deadline_s")
        result = advance(
            Path(message["path"]),
            self._opened(),
            config,
            rung=message["rung"],
            rungs=message["shares"],
            deadline=None if left_s is None else time.monotonic() + float(left_s),
            tell=self._tell,
        )
        return {"result": asdict(result)}

    def _train(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A training of an ablation, to its end, with its answers."""
        left_s = message.get("deadline_s")
        result = train_and_answer(
            Path(message["path"]),
            self._opened(),
            parse(message["config"], origin="the training's config"),
            deadline=None if left_s is None else time.monotonic() + float(left_s),
            tell=self._tell,
        )
        return {"result": asdict(result)}

    def _answers(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial says of the validation images, wherever it stands."""
        keep_answers(Path(message["path"]), self._opened(), self._config_of(message))
        return {}

    def _finish(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a trial, trained to its end, or to an earlier one, and judged: the answer, or
        what is to be retrained."""
        source, target = Path(message["source"]), Path(message["path"])
        config = self._config_of(message)
        if not target.exists():
            copy_run(source, target)
        if message["last_step"] is not None:
            shorten(target, int(message["last_step"]))
        left_s = message.get("deadline_s")
        deadline = None if left_s is None else time.monotonic() + float(left_s)
        result = advance(target, self._opened(), config, deadline=deadline, tell=self._tell)
        if not result.finished:
            # Slower than it was: the learning rate falls over a few more steps, and that is it.
            shorten(target, min(result.horizon_steps, result.step + max(1, result.step // 50)))
            result = advance(target, self._opened(), config, tell=self._tell)
        conclude(target, self._opened(), config, splits=message["splits"], tell=self._tell)
        return {"result": asdict(result)}

    def _conclude(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """What was to be retrained is the answer all the same."""
        config = self._config_of(message)
        conclude(Path(message["path"]), self._opened(), config, tell=self._tell)
        return {"result": {}}

    def _retrain(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe of a finished run, with its validation images."""
        shared, target = self._opened(), Path(message["path"])
        if target.exists():
            # Of a search that was killed in the middle of it.
            storage.discard_folder([target])
        left_s = message.get("deadline_s")
        retrain(
            target,
            shared.data,
            Run.open(Path(message["source"])),
            self._config_of(message),
            shared.extensions,
            name=message["name"],
            ends_at=None if left_s is None else time.monotonic() + float(left_s),
            tell=self._tell,
        )
        return {"result": {}}

    def _config_of(self, message: Mapping[str, Any]) -> Config:
        """The config of a trial, with what makes its rungs cheaper; sizes follow from its own."""
        config = parse(message["config"], origin="the trial's config")
        fidelity: Fidelity = message["fidelity"]
        image_px = None
        if fidelity == "image_px":
            image_px = self._opened().looked(config).plan.pixels.image_px
        return config.with_settings(settings_of(fidelity, message["shares"], image_px))

    def _opened(self) -> Shared:
        if self._shared is None:
            raise UsageError("a worker has to open the data first")
        return self._shared

    def _say(self, line: str) -> None:
        self._send({"kind": "line", "text": line})

    def _tell(self, what: str | Progress) -> None:
        if isinstance(what, str):
            self._say(what)
            return
        for note in what.notes:
            self._say(note)
        now = time.monotonic()
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            self._send(
                {
                    "kind": "progress",
                    "phase": what.phase,
                    "step": what.step,
                    "last_step": what.last_step,
                }
            )
