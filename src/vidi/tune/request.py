"""What a search is asked for, checked before anything is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from vidi import space as spaces
from vidi.config import Config, load
from vidi.errors import UsageError, nearest
from vidi.space import Distribution, Space
from vidi.tune.rungs import FIDELITIES, PROMOTIONS, Fidelity, Promotion
from vidi.tune.sampling import SAMPLERS, OwnSpace, Sampler

# The setting by which rungs differ.
PROGRESSIVE: Final = {"image_px": "progressive_px", "data_share": "progressive_data"}

AnySpace = Space | Mapping[str, Distribution | Sequence[Distribution]] | OwnSpace | str | Path
# Instead of a space: everything that is known to matter, of what the config leaves open.
Full = Literal["full"]


@dataclass(frozen=True)
class Wanted:
    """What one call of `tune` was given."""

    data: str
    config: Config
    space: Space | OwnSpace | Full | None
    minutes: float | None
    trials: int | None
    sampler: Sampler
    promotion: Promotion
    fidelity: Fidelity
    patience: int
    retrain: bool
    seed: int
    timeout_s: float
    storage_url: str | None

    @property
    def asked(self) -> dict[str, object]:
        """What a continued study has to ask for again."""
        if self.space is None:
            space: object = "what is worth trying"
        elif self.space == "full":
            space = "everything that is known to matter"
        elif isinstance(self.space, Space):
            space = self.space.to_json()
        else:
            named = self.space
            space = f"{getattr(named, '__module__', '')}:{getattr(named, '__qualname__', '')}"
        return {
            "space": space,
            "minutes": self.minutes,
            "trials": self.trials,
            "sampler": self.sampler,
            "promotion": self.promotion,
            "fidelity": self.fidelity,
            "patience": self.patience,
            "retrain": self.retrain,
            "seed": self.seed,
            "objective": "accuracy on the validation images",
        }


def check(wanted: Wanted, workers: int) -> None:
    if wanted.config.train.minutes is not None:
        raise UsageError(
            "train.minutes is the length of one training, and a search needs its own",
            fix="give --minutes to the search, and train.epochs for a trial if you like",
        )
    if wanted.minutes is None and wanted.trials is None:
        raise UsageError(
            "a search needs to know how long it may take", fix="give --minutes or --trials"
        )
    for name, value in (("minutes", wanted.minutes), ("trials", wanted.trials)):
        if value is not None and not value > 0:
            raise UsageError(f"{name} = {value:g}: a search needs more than none")
    if workers < 1:
        raise UsageError(f"workers = {workers}: somebody has to do it")
    if wanted.sampler not in SAMPLERS:
        raise UsageError(
            f"there is no sampler '{wanted.sampler}'", fix=nearest(wanted.sampler, SAMPLERS)
        )
    if wanted.promotion not in PROMOTIONS:
        raise UsageError(
            f"there is no way to promote '{wanted.promotion}'",
            fix=nearest(wanted.promotion, PROMOTIONS),
        )
    if wanted.fidelity not in FIDELITIES:
        raise UsageError(
            f"rungs cannot differ by '{wanted.fidelity}'", fix=nearest(wanted.fidelity, FIDELITIES)
        )
    if wanted.fidelity != "steps":
        _check_fidelity(wanted)
    if wanted.sampler in ("grid", "qmc", "cmaes") and callable(wanted.space):
        raise UsageError(
            f"the sampler '{wanted.sampler}' has to know the whole space, and yours is a function",
            fix="use tpe, gp or random, or give the space as a mapping",
        )


def _check_fidelity(wanted: Wanted) -> None:
    name = f"train.{PROGRESSIVE[wanted.fidelity]}"
    taken = [name, "train.image_px"] if wanted.fidelity == "image_px" else [name]
    asked = [one for one in taken if not spaces.is_open(wanted.config, one)]
    axes = wanted.space if isinstance(wanted.space, Space) else ()
    asked += [axis.name for axis in axes if axis.name in taken]
    if asked:
        raise UsageError(
            f"{asked[0]} is asked for, and rungs that differ by {wanted.fidelity} decide it",
            fix="leave it out, or search with --fidelity steps",
        )
    if wanted.promotion == "none":
        raise UsageError(
            f"promotion 'none' has no rungs that could differ by {wanted.fidelity}",
            fix="use asha, pasha, halving or median",
        )


def space_of(space: AnySpace | None) -> Space | OwnSpace | Full | None:
    if space == "full":
        return "full"
    if isinstance(space, str) and ":" in space and not Path(space).exists():
        own: OwnSpace = load(space)
        return own
    if isinstance(space, str | Path):
        return spaces.read(Path(space))
    if space is None or isinstance(space, Space):
        return space
    if isinstance(space, Mapping):
        return Space.of(space)
    return space
