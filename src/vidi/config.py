"""asked: what the user wants, and nothing that vidi decided.

Every field that is `None` is left to vidi, which decides it in `plan.make` and says why. A config
is frozen; unknown keys are refused with the nearest name and the line of the file.
"""

from __future__ import annotations

import difflib
import importlib
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, Field, ValidationError, model_validator

from vidi.augment_settings import WholeViews
from vidi.errors import ConfigError, nearest
from vidi.facts import Frozen, Precision, Sharding

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=1, le=16384)]
Rate = Annotated[float, Field(gt=0.0)]


class DataConfig(Frozen):
    """Which images, how they are split, and what size they get."""

    format: str | None = Field(None, description="how to read DATA; recognised when left open")
    image_px: Pixels | None = Field(None, description="side of the square that the model sees")
    channels: Literal[1, 3] | None = Field(None, description="1 for grey, 3 for colour")
    resize: Literal["crop", "pad", "squash"] | None = Field(
        None, description="how an image becomes a square"
    )
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None
    validation_fraction: Fraction | None = Field(
        None, description="share of the training images held out to choose by"
    )
    test_fraction: Fraction | None = Field(
        None, description="share of an unsplit data set held out to judge by"
    )
    split_seed: int = Field(0, ge=0, description="which images are held out")
    folds: Annotated[int, Field(ge=2)] | None = Field(
        None, description="for cross-validation: parts that all but the test images are cut into"
    )
    fold: Positive | None = Field(None, description="which of them is for validation, from 1 on")
    learn_validation: bool = Field(
        False, description="learn from the validation images as well; nothing is chosen by them"
    )
    unreadable: Literal["exclude", "stop"] = Field(
        "exclude", description="what to do about files that cannot be decoded"
    )
    max_unreadable_fraction: Fraction = Field(
        0.05, description="stop when a larger share of the files cannot be decoded"
    )
    read_limit_s: Annotated[float, Field(gt=0.0)] = Field(
        120.0, description="a file that takes longer to read and decode is left out"
    )
    store: Literal["disk", "memory", "device", "stream"] | None = Field(
        None, description="where decoded pixels wait; stream: decoded again in every epoch"
    )
    build: Literal["before", "alongside"] | None = Field(
        None, description="decode everything before the first step, or while training"
    )
    cache_dir: str | None = Field(
        None, description="where decoded pixels are kept; $VIDI_CACHE or the user's cache folder"
    )

    @model_validator(mode="after")
    def _one_of_the_folds(self) -> DataConfig:
        if self.fold is not None and self.folds is None:
            raise ValueError("data.fold says which of data.folds; give both")
        if self.fold is not None and self.folds is not None and self.fold > self.folds:
            raise ValueError(f"data.fold = {self.fold} of data.folds = {self.folds}")
        if self.folds is not None and self.validation_fraction is not None:
            raise ValueError("give data.folds or data.validation_fraction, not both")
        return self


class ModelConfig(Frozen):
    """Which network, and what its weights start from."""

    name: str | None = Field(None, description="a name of the zoo, or module:function")
    weights: str | None = Field(None, description='"imagenet", "none", or a file of weights')
    dropout: Fraction | None = None
    stochastic_depth: Fraction | None = None
    views: WholeViews | None = Field(
        None,
        description="answers are the mean over an image and: flip, its mirror image; shift, the "
        "image moved by a pixel",
    )


class TrainConfig(Frozen):
    """How long, with which optimizer and schedule."""

    epochs: float | None = Field(None, gt=0, description="passes over the training images")
    minutes: float | None = Field(
        None, gt=0, description="wall-clock time for everything, instead of epochs"
    )
    batch_size: Positive | None = Field(None, description="images that one update sees")
    accumulate: Positive | None = Field(
        None, description="parts into which a batch is cut to save memory"
    )
    learning_rate: Rate | None = Field(
        None, description="peak learning rate, stated for 256 images an update"
    )
    learning_rate_scaling: Literal["linear", "sqrt", "none"] | None = Field(
        None, description="how the learning rate follows the batch size"
    )
    optimizer: str | None = Field(
        None, description="a name of torch.optim: sgd, adamw, ...; adamw_schedule_free"
    )
    momentum: Fraction | None = None
    weight_decay: Annotated[float, Field(ge=0.0)] | None = None
    schedule: str | None = Field(None, description="cosine, step, ..., or module:function")
    schedule_settings: dict[str, float | tuple[float, ...]] | None = Field(
        None, description="settings of that schedule, such as { every_fraction = 0.3 }"
    )
    warmup_fraction: Fraction | None = Field(
        None, description="share of the run in which the learning rate rises"
    )
    loss: Literal["cross_entropy", "bce", "focal"] | None = None
    focal_gamma: Annotated[float, Field(ge=0.0, le=10.0)] | None = Field(
        None, description="how much the focal loss looks away from what is easy"
    )
    imbalance: Literal["none", "weighted", "logit_adjustment", "focal"] | None = Field(
        None, description="what is done about classes with few images"
    )
    label_smoothing: Fraction | None = None
    ema_decay: Fraction | None = Field(
        None, description="decay of the weight average; 0 switches it off"
    )
    swa_fraction: Fraction | None = Field(
        None, description="last share of the run whose weights are averaged, all alike; 0: off"
    )
    sam_rho: Annotated[float, Field(ge=0.0)] | None = Field(
        None, description="radius of sharpness-aware minimisation; doubles the time; 0: off"
    )
    clip_norm: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="largest norm of the gradient of one update"
    )
    sampling: Literal["each", "balanced", "weighted"] | None = Field(
        None, description="how often an image comes up: once, classes alike, or by its weight"
    )
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="learning rate of each stage as a share of the next one's"
    )
    freeze_stages: Annotated[int, Field(ge=0)] | None = Field(
        None, description="first stages of a pretrained network that never learn"
    )
    unfreeze_fraction: Fraction | None = Field(
        None, description="share of the run over which the stages begin to learn, last one first"
    )
    head: Literal["with_the_rest", "first", "only"] | None = Field(
        None, description="whether the head is fitted on kept features first, or nothing else is"
    )
    head_penalty: Annotated[float, Field(ge=0.0)] | None = Field(
        None, description="penalty on the squared weights of a head that is fitted on features"
    )
    image_px: Pixels | None = Field(
        None, description="side of the images in training, where that is less than data.image_px"
    )
    progressive_px: tuple[Pixels, ...] | None = Field(
        None, description="sizes of the images in equal parts of the run; the last is image_px"
    )
    progressive_data: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] | None = Field(
        None, description="shares of the training images in equal parts of the run; the last is 1"
    )
    patience_epochs: Positive | None = Field(
        None, description="stop when validation did not get better for so long"
    )
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if self.epochs is not None and self.minutes is not None:
            raise ValueError("give train.epochs or train.minutes, not both")
        return self


class AugmentConfig(Frozen):
    """How training images are varied."""

    crop: Literal["none", "pad", "resized"] | None = None
    crop_padding_px: Annotated[int, Field(ge=0)] | None = None
    crop_scale_min: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="smallest share of the image's area that a random resized crop keeps"
    )
    horizontal_flip: Literal["none", "random", "alternating"] | None = None
    vertical_flip: bool | None = None
    policy: Literal["none", "light", "medium", "strong"] | None = Field(
        None, description="further changes of shape and colour, see docs/augment.md"
    )
    mixup_alpha: Annotated[float, Field(ge=0.0)] | None = None
    cutmix_alpha: Annotated[float, Field(ge=0.0)] | None = None
    erase_probability: Fraction | None = None
    extra: tuple[str, ...] = Field((), description="your own transforms, as module:function")


class MachineConfig(Frozen):
    """What the run may use of this computer."""

    device: Literal["cpu", "cuda", "mps", "xpu"] | None = None
    precision: Precision | None = None
    channels_last: bool | None = None
    probe: Literal["cached", "fresh", "never"] | None = Field(
        None, description="whether ways of computing a step are timed first; once, if left open"
    )
    compile: bool | None = Field(None, description="torch.compile the model")
    winograd: bool | None = Field(
        None,
        description="3 x 3 convolutions with a quarter of the multiplications, in bfloat16 on "
        "processors that have AVX-512 for it",
    )
    cuda_graphs: bool | None = Field(
        None, description="record the compiled step once and play it as a whole; NVIDIA only"
    )
    fused: bool | None = Field(
        None, description="the optimizer's fused kernel, or its lists of tensors"
    )
    augment_on: Literal["device", "host"] | None = Field(
        None, description="where images are augmented, where training is on an accelerator"
    )
    recompute: bool | None = Field(
        None, description="keep fewer activations and compute them again, to save memory"
    )
    keep_memory: bool | None = Field(None, description="tell malloc to keep what a step frees")
    sharding: Sharding | None = Field(
        None,
        description="full: weights, gradients and the optimizer's numbers are divided between the "
        "processes, for models that do not fit into one",
    )
    deterministic: bool | None = Field(
        None, description="only operations whose result is always the same, also on GPUs"
    )
    timeout_s: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="how long processes wait for each other before they give up"
    )
    threads: Positive | None = Field(None, description="threads of one tensor operation")
    loader_threads: Positive | None = Field(None, description="threads that prepare batches")


class CheckpointConfig(Frozen):
    """How much work a kill may cost."""

    every_s: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="seconds between checkpoints inside an epoch"
    )


class EvaluateConfig(Frozen):
    """How the result is judged."""

    metrics: tuple[str, ...] = Field((), description="your own metrics, as module:function")


class Config(Frozen):
    """All that can be asked of a run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    augment: AugmentConfig = AugmentConfig()
    machine: MachineConfig = MachineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def with_settings(self, settings: Mapping[str, object]) -> Config:
        """A copy with `{"train.epochs": 20}` applied.

        Raises:
            ConfigError: a name that does not exist or a value of the wrong type.
        """
        tree: dict[str, Any] = self.model_dump(exclude_unset=True)
        for name, value in settings.items():
            section, _, field = name.partition(".")
            if not field:
                raise ConfigError(
                    f"no setting '{name}': a setting is named section.field",
                    fix=f"the sections are {', '.join(Config.model_fields)}",
                )
            tree.setdefault(section, {})[field] = value
        return _validated(tree, origin="settings", text="")

    def to_toml(self) -> str:
        """Only what was set; `parse(config.to_toml()) == config`."""
        tree = self.model_dump(exclude_unset=True, exclude_none=True, mode="json")
        return tomli_w.dumps({name: section for name, section in tree.items() if section})


def parse(text: str, *, origin: str = "config") -> Config:
    """TOML to Config.

    Raises:
        ConfigError: not TOML, an unknown name, a wrong type; `origin` and the line are named.
    """
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{origin}: not TOML: {error}",
            fix="section headers look like [train], settings like epochs = 20",
        ) from None
    return _validated(tree, origin=origin, text=text)


def read(path: Path) -> Config:
    """The Config in a TOML file.

    Raises:
        ConfigError: no such file, or what `parse` refuses.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"cannot read the config {path}: {reason}") from None
    config = parse(text, origin=str(path))
    if config.model.name is not None and config.model.name.startswith("hf-hub:"):
        # A file may come from anybody, and so may what it names.
        raise ConfigError(
            f"{path}: a model of the hub is not taken from a file",
            fix=f"name it on the command line: --model {config.model.name}",
        )
    return config


def parse_settings(assignments: tuple[str, ...] | list[str]) -> dict[str, object]:
    """`["train.epochs=20"]` to `{"train.epochs": 20}`; values are TOML, bare words are text.

    Raises:
        ConfigError: no `=` in it.
    """
    settings: dict[str, object] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name.strip():
            raise ConfigError(
                f"cannot read the setting '{assignment}'", fix="write --set section.field=value"
            )
        settings[name.strip()] = _toml_value(value.strip())
    return settings


def _toml_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def load(name: str) -> Any:
    """The object that `module:name` stands for; the only place where a name is imported.

    Called for names that the user wrote on the command line, in a config or in Python, never for
    a name found in data, a checkpoint or a bundle.

    Raises:
        ConfigError: no such module, or it has no such name.
    """
    module_name, colon, attribute = name.partition(":")
    if (
        not colon
        or not re.fullmatch(r"[A-Za-z_][\w.]*", module_name)
        or not attribute.isidentifier()
    ):
        raise ConfigError(f"'{name}' is not of the form module:name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"cannot import '{module_name}' for '{name}': {error}",
            fix="run from the folder of that module with PYTHONPATH=. or install it",
        ) from None
    try:
        return getattr(module, attribute)
    except AttributeError:
        names = [known for known in vars(module) if not known.startswith("_")]
        raise ConfigError(
            f"module '{module_name}' has no '{attribute}'", fix=nearest(attribute, names)
        ) from None


def _validated(tree: dict[str, Any], *, origin: str, text: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise _explained(error, origin=origin, text=text) from None


def _explained(error: ValidationError, *, origin: str, text: str) -> ConfigError:
    """The first complaint of pydantic in vidi's words."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if not _is_branch(str(part))]
    name = ".".join(location)
    line = _line_of(text, location)
    place = f"{origin}, line {line}" if line else origin
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{place}: no setting '{name}'", fix=_suggestion(location))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return ConfigError(f"{place}: {message}")
    return ConfigError(f"{place}: '{name}' cannot be {first['input']!r}: {message}")


def _is_branch(part: str) -> bool:
    """Pydantic names the branch of a union in the location; users know only the field."""
    return part in ("int", "float", "str", "bool") or part.startswith(("literal[", "constrained-"))


def _suggestion(location: list[str]) -> str:
    sections = _sections()
    if len(location) == 1:
        return nearest(location[0], sections)
    fields = sections.get(location[0], {})
    everywhere = [f"{section}.{field}" for section, names in sections.items() for field in names]
    elsewhere = [known for known in everywhere if known.endswith(f".{location[1]}")]
    if elsewhere:
        return f"did you mean '{elsewhere[0]}'?"
    close = difflib.get_close_matches(location[1], list(fields), n=1, cutoff=0.6)
    if close:
        return f"did you mean '{location[0]}.{close[0]}'?"
    return nearest(".".join(location), everywhere)


def _sections() -> dict[str, dict[str, object]]:
    sections: dict[str, dict[str, object]] = {}
    for name, field in Config.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, types.UnionType):
            annotation = typing.get_args(annotation)[0]
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        sections[name] = dict(annotation.model_fields)
    return sections


def _line_of(text: str, location: list[str]) -> int | None:
    """The line of a TOML text where `section.field` stands; tomllib does not tell."""
    if not location:
        return None
    section, field = location[0], location[1] if len(location) > 1 else None
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            current = header.group(1).strip("\"'")
            if field is None and current.split(".")[0] == section:
                return number
            continue
        key = line.partition("=")[0].strip().strip("\"'")
        if not key:
            continue
        if key == (section if field is None else f"{section}.{field}"):
            return number
        if current == section and key == field:
            return number
    return None
