"""What a search may try: settings of `Config` to distributions, and which are worth trying.

    {"train.learning_rate": log_uniform(1e-3, 1.0), "train.batch_size": choice(64, 128)}

No torch, no files, no clock. A learning rate is stated for 256 images and weight decay apart from
it, so each axis means one thing whatever the others are.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

from vidi.config import Config
from vidi.errors import ConfigError, nearest
from vidi.facts import DatasetFacts

# What trials have to have in common to be compared, and what only changes the speed.
NOT_SEARCHED: Final[Mapping[str, str]] = {
    "data.format": "all trials see the same images",
    "data.validation_fraction": "all trials are judged by the same images",
    "data.test_fraction": "all trials are judged by the same images",
    "data.split_seed": "all trials are judged by the same images",
    "data.folds": "all trials are judged by the same images",
    "data.fold": "all trials are judged by the same images",
    "data.learn_validation": "all trials are judged by the validation images",
    "data.unreadable": "all trials see the same images",
    "data.max_unreadable_fraction": "all trials see the same images",
    "data.cache_dir": "it is a place, not a choice",
    "train.minutes": "trials are as long as each other; give the search its minutes",
    "train.patience_epochs": "the search itself stops what is hopeless",
}
_MACHINE: Final = ("machine", "checkpoint", "evaluate")

Kind = Literal["uniform", "log_uniform", "integer", "log_integer", "choice"]
_KINDS: Final[tuple[Kind, ...]] = ("uniform", "log_uniform", "integer", "log_integer", "choice")


@dataclass(frozen=True, slots=True)
class Distribution:
    """Values and how likely each is; make one with `uniform` and its like.

    low, high: both can come out. values: of a choice. conditions: it is only there when other
    settings have one of these values.
    """

    kind: Kind
    low: float = 0.0
    high: float = 0.0
    values: tuple[Any, ...] = ()
    conditions: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def when(self, name: str, *values: Any) -> Distribution:
        """The same, but only where the setting `name` has one of `values`."""
        return replace(self, conditions={**self.conditions, name: values})

    @property
    def is_log(self) -> bool:
        return self.kind in ("log_uniform", "log_integer")

    @property
    def is_integer(self) -> bool:
        return self.kind in ("integer", "log_integer")

    def at(self, share: float) -> Any:
        """The value below which that share, 0 to 1, of all draws lies."""
        if self.kind == "choice":
            return self.values[min(len(self.values) - 1, int(share * len(self.values)))]
        low, high = self.low, self.high
        if self.is_integer:
            # Each whole number has its part of the line.
            low, high = low - 0.5, high + 0.5
        if self.is_log:
            low, high = math.log(low), math.log(high)
        value = low + share * (high - low)
        value = math.exp(value) if self.is_log else value
        value = min(self.high, max(self.low, value))
        return min(int(self.high), max(int(self.low), round(value))) if self.is_integer else value

    def share(self, value: Any) -> float:
        """The other way round: what `at` makes `value` of."""
        if self.kind == "choice":
            return (self.values.index(value) + 0.5) / len(self.values)
        low, high, place = self.low, self.high, float(value)
        if self.is_integer:
            low, high = low - 0.5, high + 0.5
        if self.is_log:
            low, high, place = math.log(low), math.log(high), math.log(place)
        return (place - low) / (high - low)

    def contains(self, value: Any) -> bool:
        """Whether it can come out."""
        if self.kind == "choice":
            return value in self.values
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and (not self.is_integer or value == int(value))

    def points(self, count: int) -> tuple[Any, ...]:
        """Up to `count` values, evenly over it, the ends among them; all values of a choice."""
        if self.kind == "choice":
            return self.values
        if self.is_integer and self.high - self.low < count:
            return tuple(range(int(self.low), int(self.high) + 1))
        found = [self.at(number / max(1, count - 1)) for number in range(count)]
        return tuple(dict.fromkeys(found))

    def to_json(self) -> dict[str, Any]:
        said: dict[str, Any] = {
            self.kind: list(self.values) if self.kind == "choice" else [self.low, self.high]
        }
        if self.conditions:
            said["when"] = {name: list(values) for name, values in self.conditions.items()}
        return said


def uniform(low: float, high: float) -> Distribution:
    """Any number from `low` to `high`, all alike."""
    return Distribution("uniform", float(low), float(high))


def log_uniform(low: float, high: float) -> Distribution:
    """Any number from `low` to `high`, each order of magnitude alike; `low` above 0."""
    return Distribution("log_uniform", float(low), float(high))


def integer(low: int, high: int) -> Distribution:
    """A whole number from `low` to `high`, both included."""
    return Distribution("integer", low, high)


def log_integer(low: int, high: int) -> Distribution:
    """A whole number from `low` to `high`, each order of magnitude alike; `low` above 0."""
    return Distribution("log_integer", low, high)


def choice(*values: Any) -> Distribution:
    """One of `values`, all alike."""
    return Distribution("choice", values=tuple(_hashable(value) for value in values))


@dataclass(frozen=True, slots=True)
class Axis:
    """One distribution of one setting. A setting may have several, under conditions that exclude
    each other; `label` tells them apart."""

    name: str
    distribution: Distribution
    label: str

    def is_active(self, settings: Mapping[str, Any]) -> bool:
        """Whether it is there, given what came out for the axes before it."""
        return all(
            name in settings and settings[name] in values
            for name, values in self.distribution.conditions.items()
        )


@dataclass(frozen=True, slots=True)
class Space:
    """Axes in the order in which they are drawn: a condition speaks of axes before it."""

    axes: tuple[Axis, ...]

    @classmethod
    def of(
        cls,
        distributions: Mapping[str, Distribution | Sequence[Distribution]],
        *,
        origin: str = "space",
    ) -> Self:
        """A checked space. The order of the mapping does not matter.

        Raises:
            ConfigError: a setting that does not exist, a range that is empty or wrong for its type,
                a condition that can never hold; origin and setting are named.
        """
        axes: list[Axis] = []
        for name, given in distributions.items():
            several = [given] if isinstance(given, Distribution) else list(given)
            for one in several:
                _check(origin, name, one)
                only = len(several) == 1
                axes.append(Axis(name, one, name if only else f"{name} {_words(one.conditions)}"))
        if not axes:
            raise ConfigError(f"{origin}: there is nothing to search", fix="name a setting")
        return cls(tuple(_ordered(origin, axes)))

    def __iter__(self) -> Iterator[Axis]:
        return iter(self.axes)

    def to_json(self) -> dict[str, Any]:
        """By settings; `from_tree` reads it."""
        found: dict[str, Any] = {}
        for axis in self.axes:
            found.setdefault(axis.name, []).append(axis.distribution.to_json())
        return {name: many[0] if len(many) == 1 else many for name, many in sorted(found.items())}


def from_tree(tree: Mapping[str, Any], *, origin: str = "space") -> Space:
    """A space from what TOML or JSON holds: `{"train.learning_rate": {"uniform": [0.1, 1.0]}}`.

    Dotted names may also be nested tables. Raises ConfigError.
    """
    return Space.of(
        {name: _read_axis(origin, name, value) for name, value in _leaves(tree, "")}, origin=origin
    )


def read(path: Path) -> Space:
    """The table [space] of a TOML file. Raises ConfigError."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the space {path}: {error.strerror}",
            fix="give a TOML file with a table [space], or module:function",
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}", fix=_EXAMPLE) from None
    if set(tree) != {"space"} or not isinstance(tree["space"], dict):
        raise ConfigError(f"{path}: a space is one table [space]", fix=_EXAMPLE)
    return from_tree(tree["space"], origin=str(path))


_EXAMPLE: Final = 'write [space] and below it "train.learning_rate" = { log_uniform = [0.01, 1.0] }'


def is_open(config: Config, name: str) -> bool:
    """Whether the setting `name`, such as "train.optimizer", is left to be decided."""
    section, field_name = name.split(".")
    return getattr(getattr(config, section), field_name) is None


def default_space(
    config: Config, facts: DatasetFacts, *, pretrained: bool, full: bool = False
) -> Space:
    """What is worth trying on such images, of all that `config` leaves open.

    From scratch, ranges are around what trains small convolutional networks (Goyal et al. 2017; He
    et al. 2019, "bag of tricks"), and where the optimizer is asked for only its own are left;
    fine-tuning, around those of DeiT and ConvNeXt, which are AdamW's whatever is asked for. Whether
    images may be mirrored the plan decides from the images.

    full: everything that is known to matter, the network and the size of the images too, for
    searches of many trials. How long a trial is remains what the time allows.
    """
    found = _fine_tuning() if pretrained else _from_scratch(facts)
    if full:
        found |= _more_of_fine_tuning(facts) if pretrained else _more_from_scratch(facts)
        found |= _more_of_both(config, pretrained=pretrained)
    counts = [count for count in facts.counts["train"] if count]
    # Where the owner says how often images are drawn, that is the remedy.
    undecided = config.train.sampling in (None, "each") and not facts.weighted
    if undecided and max(counts) > 3 * min(counts):
        found |= _against_imbalance()
    open_ones = {name: given for name, given in found.items() if is_open(config, name)}
    # Ranges that wait for one of them are left where it was asked for so.
    settled = {
        "model.name": config.model.name,
        "train.optimizer": config.train.optimizer,
        "train.imbalance": config.train.imbalance,
    }
    asked = {name: value for name, value in settled.items() if value is not None}
    return Space.of(
        {name: kept for name, given in open_ones.items() if (kept := _decided(given, asked))}
    )


def _against_imbalance() -> dict[str, Distribution | Sequence[Distribution]]:
    """One remedy at a time: classes drawn alike and a loss that makes rare ones count more favour
    them twice."""
    return {
        "train.imbalance": choice("none", "logit_adjustment", "weighted"),
        "train.sampling": choice("each", "balanced").when("train.imbalance", "none"),
    }


def _from_scratch(facts: DatasetFacts) -> dict[str, Distribution | Sequence[Distribution]]:
    num_train = facts.num_images("train")
    # At least some dozens of updates an epoch.
    batches = [size for size in (32, 64, 128, 256, 512) if size <= max(32, num_train // 24)][-3:]
    found: dict[str, Distribution | Sequence[Distribution]] = {
        "train.optimizer": choice("muon_hyperball", "sgd", "adamw"),
        "train.learning_rate": [
            log_uniform(0.03, 0.4).when("train.optimizer", "muon_hyperball"),
            log_uniform(0.03, 1.5).when("train.optimizer", "sgd"),
            log_uniform(3e-4, 1e-2).when("train.optimizer", "adamw"),
        ],
        "train.momentum": uniform(0.8, 0.97).when("train.optimizer", "sgd"),
        "train.weight_decay": [
            log_uniform(1e-5, 5e-3).when("train.optimizer", "sgd"),
            log_uniform(1e-3, 0.3).when("train.optimizer", "adamw"),
        ],
        "train.batch_size": choice(*batches),
        "train.warmup_fraction": uniform(0.0, 0.1),
        "train.label_smoothing": uniform(0.0, 0.2),
        "model.dropout": uniform(0.0, 0.4),
        "augment.policy": choice("none", "light", "medium"),
        "augment.erase_probability": choice(0.0, 0.25),
    }
    if facts.num_classes > 2:
        found["augment.cutmix_alpha"] = choice(0.0, 1.0)
    return found


def _fine_tuning() -> dict[str, Distribution | Sequence[Distribution]]:
    return {
        "train.learning_rate": log_uniform(6e-5, 4e-3),
        "train.weight_decay": log_uniform(1e-3, 0.3),
        "train.batch_size": choice(16, 32, 64),
        "train.layer_decay": choice(0.7, 0.85, 1.0),
        "train.freeze_stages": choice(0, 1),
        "train.head": choice("with_the_rest", "first"),
        "train.label_smoothing": uniform(0.0, 0.2),
        "model.dropout": uniform(0.0, 0.4),
        "augment.policy": choice("none", "light", "medium"),
        "augment.mixup_alpha": choice(0.0, 0.2),
    }


_Axes = dict[str, Distribution | Sequence[Distribution]]
# Of the networks of a full space, that which has stochastic depth.
_DEEP: Final = "resnet18"


def _more_of_both(config: Config, *, pretrained: bool) -> _Axes:
    depth: Distribution | None = uniform(0.0, 0.3)
    if config.model.name is not None:
        deep = config.model.name.startswith(("resnet", "efficientnet"))
        depth = depth if deep else None
    elif not pretrained:
        depth = uniform(0.0, 0.3).when("model.name", _DEEP)
    return {
        "train.schedule": choice("trapezoid", "cosine", "linear"),
        "train.warmup_fraction": uniform(0.0, 0.2),
        "train.ema_decay": choice(0.0, 0.99, 0.998),
        "augment.policy": choice("none", "light", "medium", "strong"),
        "augment.mixup_alpha": choice(0.0, 0.2, 0.8),
        "augment.cutmix_alpha": choice(0.0, 1.0),
        "augment.erase_probability": choice(0.0, 0.25),
        **({} if depth is None else {"model.stochastic_depth": depth}),
    }


def _more_from_scratch(facts: DatasetFacts) -> _Axes:
    short_px = min(facts.height_px[1], facts.width_px[1])
    found: _Axes = {"model.name": choice("small_cnn", "small_cnn_x2", _DEEP)}
    # Smaller images are shown as they are, photos at any size.
    if short_px >= 128:
        found["data.image_px"] = choice(64, 96, 128)
    return found


def _more_of_fine_tuning(facts: DatasetFacts) -> _Axes:
    photos = min(facts.height_px[1], facts.width_px[1]) >= 96
    return {
        "train.optimizer": choice("adamw", "sgd"),
        "train.learning_rate": [
            log_uniform(6e-5, 4e-3).when("train.optimizer", "adamw"),
            log_uniform(3e-3, 0.3).when("train.optimizer", "sgd"),
        ],
        "train.momentum": uniform(0.8, 0.97).when("train.optimizer", "sgd"),
        "train.weight_decay": [
            log_uniform(1e-3, 0.3).when("train.optimizer", "adamw"),
            log_uniform(1e-5, 5e-3).when("train.optimizer", "sgd"),
        ],
        "train.freeze_stages": choice(0, 1, 2),
        "data.image_px": choice(160, 192, 224) if photos else choice(96, 128, 160),
    }


def portfolio(space: Space, *, pretrained: bool) -> list[dict[str, Any]]:
    """Settings to begin with, so that a search is never worse than the default, which comes first.

    Only what the space can give; the others stay as they are asked for.
    """
    tried: list[dict[str, Any]] = [{}]
    tried += (
        [
            {"train.learning_rate": 1.2e-3, "train.head": "first"},
            {"train.learning_rate": 3e-4, "train.head": "first", "augment.policy": "medium"},
        ]
        if pretrained
        else [
            {"train.optimizer": "muon_hyperball", "train.batch_size": 64},
            {"train.optimizer": "sgd", "train.learning_rate": 0.5, "augment.policy": "none"},
            {"train.optimizer": "adamw", "train.learning_rate": 2e-3, "train.weight_decay": 0.05},
        ]
    )
    known: list[dict[str, Any]] = []
    for settings in tried:
        kept = {name: value for name, value in settings.items() if _can_give(space, name, value)}
        if kept not in known:
            known.append(kept)
    return known


def _can_give(space: Space, name: str, value: Any) -> bool:
    return any(axis.name == name and axis.distribution.contains(value) for axis in space)


def _decided(
    given: Distribution | Sequence[Distribution], asked: Mapping[str, Any]
) -> Distribution | list[Distribution] | None:
    """Without the conditions that are settled by what was asked; None when none can hold."""
    kept = []
    for one in [given] if isinstance(given, Distribution) else given:
        if all(asked[name] in one.conditions[name] for name in one.conditions if name in asked):
            left = {name: v for name, v in one.conditions.items() if name not in asked}
            kept.append(replace(one, conditions=left))
    return (kept[0] if len(kept) == 1 else kept) if kept else None


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping) and full.count(".") < 1 and not set(value) & set(_KINDS):
            yield from _leaves(value, f"{full}.")
        else:
            yield full, value


def _read_axis(origin: str, name: str, value: Any) -> Distribution | list[Distribution]:
    if isinstance(value, list):
        return [_read_one(origin, name, one) for one in value]
    return _read_one(origin, name, value)


def _read_one(origin: str, name: str, value: Any) -> Distribution:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{origin}: '{name}' is no distribution: {value!r}", fix=_EXAMPLE)
    kinds = [key for key in value if key != "when"]
    if len(kinds) != 1 or kinds[0] not in _KINDS:
        wrong = next((key for key in kinds if key not in _KINDS), "")
        raise ConfigError(
            f"{origin}: '{name}' has to name one distribution, not {', '.join(kinds) or 'none'}",
            fix=nearest(wrong, _KINDS),
        )
    kind, ends = kinds[0], value[kinds[0]]
    if not isinstance(ends, list) or (kind != "choice" and len(ends) != 2):
        raise ConfigError(f"{origin}: '{name}': {kind} takes a list, [low, high]", fix=_EXAMPLE)
    if kind == "choice":
        made = choice(*ends)
    elif any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
        raise ConfigError(f"{origin}: '{name}': {kind} takes two numbers, not {ends}", fix=_EXAMPLE)
    else:
        made = Distribution(kind, ends[0], ends[1])
    conditions = value.get("when", {})
    if not isinstance(conditions, Mapping):
        raise ConfigError(
            f"{origin}: '{name}': when takes a table", fix='when = { "train.optimizer" = "sgd" }'
        )
    for other, wanted in conditions.items():
        made = made.when(
            other, *(_hashable(w) for w in (wanted if isinstance(wanted, list) else [wanted]))
        )
    return made


def _check(origin: str, name: str, one: Distribution) -> None:
    where = f"{origin}: '{name}'"
    _check_name(origin, name)
    if one.kind == "choice":
        if not one.values:
            raise ConfigError(
                f"{where}: there is nothing to choose from",
                fix="name two values or more: { choice = [0.0, 0.1] }",
            )
        if len({json.dumps(value) for value in one.values}) != len(one.values):
            raise ConfigError(
                f"{where}: a value stands there twice: {list(one.values)}", fix="name it once"
            )
        tried: tuple[Any, ...] = one.values
    else:
        low, high = one.low, one.high
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ConfigError(f"{where}: {low} to {high} is no range", fix="give two finite ends")
        if not low < high:
            raise ConfigError(
                f"{where}: the range from {low:g} to {high:g} is empty",
                fix="give the lower end first; for a single value use --set",
            )
        if one.is_log and low <= 0:
            raise ConfigError(
                f"{where}: {one.kind} from {low:g}: orders of magnitude begin above 0",
                fix=f"use {one.kind.removeprefix('log_')}, or a low end above 0",
            )
        if one.is_integer and (low != int(low) or high != int(high)):
            raise ConfigError(
                f"{where}: {one.kind} takes whole numbers, not {low:g} and {high:g}",
                fix=f"use {'log_uniform' if one.is_log else 'uniform'} for any number",
            )
        tried = (int(low), int(high)) if one.is_integer else (low, high, one.at(0.37))
    for value in tried:
        try:
            Config().with_settings({name: value})
        except ConfigError as error:
            raise ConfigError(
                f"{origin}: {error.message.removeprefix('settings: ')}", fix=error.fix
            ) from None


def _check_name(origin: str, name: str) -> None:
    section, _, rest = name.partition(".")
    sections = Config.model_fields
    known = [
        f"{one}.{inner}"
        for one, about in sections.items()
        for inner in getattr(about.annotation, "model_fields", {})
        if one not in _MACHINE and f"{one}.{inner}" not in NOT_SEARCHED
    ]
    if name in NOT_SEARCHED:
        raise ConfigError(f"{origin}: '{name}' cannot be searched: {NOT_SEARCHED[name]}")
    if section in _MACHINE and rest:
        raise ConfigError(
            f"{origin}: '{name}' cannot be searched: it changes how fast a trial is, not what it "
            "learns",
            fix="leave it open: it is measured",
        )
    if name not in known:
        raise ConfigError(f"{origin}: no setting '{name}'", fix=_suggestion(name, known))


def _suggestion(name: str, known: list[str]) -> str:
    elsewhere = [one for one in known if one.partition(".")[2] == name.rpartition(".")[2]]
    return f"did you mean '{elsewhere[0]}'?" if elsewhere else nearest(name, known)


def _ordered(origin: str, axes: list[Axis]) -> list[Axis]:
    """Conditions after what they speak of; otherwise by name, so that the order given is nothing.

    Raises ConfigError for conditions that cannot hold or go round in a circle.
    """
    waiting = sorted(axes, key=lambda axis: (axis.name, axis.label))
    names = {axis.name for axis in axes}
    for axis in waiting:
        for other, values in axis.distribution.conditions.items():
            if other not in names:
                raise ConfigError(
                    f"{origin}: '{axis.name}' depends on '{other}', which is not searched",
                    fix=nearest(other, names),
                )
            for value in values:
                if not any(a.name == other and a.distribution.contains(value) for a in axes):
                    raise ConfigError(
                        f"{origin}: '{axis.name}' waits for {other} = {value!r}, which it never is"
                    )
    found: list[Axis] = []
    while waiting:
        blocked = {axis.name for axis in waiting}
        ready = [a for a in waiting if not blocked & a.distribution.conditions.keys()]
        if not ready:
            raise ConfigError(
                f"{origin}: these wait for each other: {', '.join(sorted(blocked))}",
                fix="conditions may not go round in a circle",
            )
        # All axes of a setting at a time: which of them is there decides its value.
        first = ready[0].name
        found += [axis for axis in waiting if axis.name == first]
        waiting = [axis for axis in waiting if axis.name != first]
    return found


def _words(conditions: Mapping[str, tuple[Any, ...]]) -> str:
    return " and ".join(
        f"({name.rpartition('.')[2]} = {'/'.join(map(str, values))})"
        for name, values in conditions.items()
    )


def _hashable(value: Any) -> Any:
    return tuple(_hashable(one) for one in value) if isinstance(value, list | tuple) else value
