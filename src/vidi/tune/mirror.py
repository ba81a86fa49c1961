"""The trials in a database of Optuna's, for its dashboard: a mirror that is made again if need be.

One process writes. Nothing is decided from it: the truth is in the study's own files, so a damaged
or missing database costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, final

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from vidi.errors import UsageError
from vidi.study import Study, Trial
from vidi.tune.sampling import as_optuna
from vidi.words import first_line

_SIDE_FILES: Final = ("", "-wal", "-shm", "-journal")


@final
class Mirror:
    """A study of Optuna's that shows ours.

    Args:
        url: of a database server; the study's own SQLite file when left out.
        say: told when the file was damaged, or cannot be written any more, and under which name the
            study is on the server.

    Needs the lock of the study. Raises UsageError when the server cannot be reached, StorageError.
    """

    def __init__(self, study: Study, url: str | None, *, say: Callable[[str], None]) -> None:
        self._say = say
        self._storage: Any = None
        self._study_id = 0
        # Number of a trial -> the database's number, how many results it has, its state there.
        self._known: dict[int, tuple[int, int, TrialState]] = {}
        path = study.database_path
        name = study.path.resolve().name if url is None else _name_on_server(study)
        if url is None:
            if damage := damage_of(path):
                say(f"{path.name} is damaged ({damage}); made again from the trials")
            # Made again in any case: what is finished there cannot be taken back.
            for end in _SIDE_FILES:
                Path(f"{path}{end}").unlink(missing_ok=True)
        try:
            self._open(url or study.database_url, name)
        except Exception as error:
            if url is not None:
                first = first_line(error)
                raise UsageError(
                    f"cannot use the database: {type(error).__name__}: {first}",
                    fix="give an address of SQLAlchemy's, such as postgresql://user@host/name",
                ) from None
            self._give_up(error)
            return
        if url is not None:
            say(f"the database shows the study as {name}")
        for trial in study.trials():
            self.show(trial)

    def show(self, trial: Trial, *, final: bool = False) -> None:
        """Makes the database say what `trial` says. What goes wrong is told once, and costs only
        the dashboard. final: nothing will happen to it any more in this search."""
        if self._storage is None:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._show(trial, final=final)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        if self._storage is not None:
            with contextlib.suppress(Exception):
                self._storage.remove_session()
                self._storage.engine.dispose()
            self._storage = None

    def _open(self, url: str, name: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._storage = optuna.storages.RDBStorage(url)
            with contextlib.suppress(KeyError):
                self._storage.delete_study(self._storage.get_study_id_from_name(name))
            self._study_id = self._storage.create_new_study([StudyDirection.MAXIMIZE], name)

    def _show(self, trial: Trial, *, final: bool) -> None:
        told = as_optuna(trial, final=True)
        state = told.state
        if trial.status == "failed":
            state = TrialState.FAIL
        elif not trial.is_over and not final:
            # It may be promoted, and what is over in Optuna cannot go on.
            state = TrialState.RUNNING
        if trial.number not in self._known:
            begun = optuna.create_trial(
                state=TrialState.RUNNING,
                params=told.params,
                distributions=told.distributions,
                user_attrs={**told.user_attrs, "vidi trial": trial.number},
            )
            number = self._storage.create_new_trial(self._study_id, begun)
            self._known[trial.number] = number, 0, TrialState.RUNNING
        number, count, before = self._known[trial.number]
        if before.is_finished():
            return
        for index in range(count, len(trial.rungs)):
            self._storage.set_trial_intermediate_value(number, index, trial.rungs[index].accuracy)
        self._storage.set_trial_user_attr(number, "status", trial.status)
        if state != before:
            values = None if told.value is None else [told.value]
            self._storage.set_trial_state_values(number, state, values)
        self._known[trial.number] = number, len(trial.rungs), state

    def _give_up(self, error: Exception) -> None:
        self._say(f"the database for the dashboard cannot be written: {first_line(error)}")
        self.close()


def _name_on_server(study: Study) -> str:
    """Its own among all that others keep there; chosen once, so that only what is ours is ever
    replaced."""
    if "database_name" not in study.decided:
        study.decide(database_name=f"{study.path.resolve().name}-{secrets.token_hex(4)}")
    return str(study.decided["database_name"])


def damage_of(path: Path) -> str:
    """What is wrong with an SQLite file, in words; empty when nothing is, or there is none."""
    if not os.path.lexists(path):
        return ""
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
        ) as database:
            (said,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error as error:
        return str(error)
    return "" if said == "ok" else str(said)


def show_all(mirror: Mirror, trials: Sequence[Trial]) -> None:
    """The last word of a search: what was passed over is pruned."""
    for trial in trials:
        mirror.show(trial, final=True)
