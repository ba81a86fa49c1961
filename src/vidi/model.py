"""Models from pixels to logits: from the zoo, from timm, or your own.

`build` gives a `Classifier`, which takes pixels in 0..255 and normalises them inside, so that
training, evaluation, an exported file and a server cannot differ in what they do to a pixel.
"""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import functools
import importlib.util
import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from vidi import weights as weights_module
from vidi.config import load
from vidi.errors import MissingExtra, UsageError, nearest
from vidi.facts import ModelFacts, WeightsFacts
from vidi.weights import Fit
from vidi.zoo import IMAGENET, MODELS, Weights
from vidi.zoo.efficientnet import EfficientNet, with_our_names


@final
class Classifier(nn.Module):
    """Pixels in, logits out: normalisation, then the network.

    Args:
        network: float images (N, C, H, W), normalised, to logits (N, num_classes).
        name: what it was built from, for messages and facts.
        mean, std: of each channel, in 0..1; kept as buffers.
        image_px: side of the images that it is meant for.
        num_classes: number of logits.
        fit: what became of pretrained weights; None without.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        image_px: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.image_px = image_px
        self.num_classes = num_classes
        self.channels = len(mean)
        self.fit: Fit | None = None
        self.batch_norm_frozen = False
        mean_, std_ = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("scale", (1.0 / (255.0 * std_)).view(1, -1, 1, 1))
        self.register_buffer("shift", (-mean_ / std_).view(1, -1, 1, 1))
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
                forward = functools.partial(_depthwise, module.forward)
                module.forward = forward  # type: ignore[method-assign]

    def normalise(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) in 0..255, uint8 or float -> float32 `(x / 255 - mean) / std`.

        The memory format stays.
        """
        if not images.is_floating_point():
            images = images.float()
        elif images.dtype != torch.float32:
            images = images.to(torch.float32)
        else:
            # The user's own tensor: not to be changed.
            return torch.addcmul(self.shift, images, self.scale)
        rows = images.permute(0, 2, 3, 1)
        if not torch.compiler.is_compiling() and rows.is_contiguous():
            # With the channels innermost, broadcasting runs in loops of three; a row at a time
            # is up to seven times as fast (16 images of 224 px: 0.6 instead of 4.1 ms).
            width = images.shape[3]
            flat = rows.flatten(2)
            flat.mul_(self.scale.flatten().repeat(width)).add_(self.shift.flatten().repeat(width))
            return images
        return images.mul_(self.scale).add_(self.shift)

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) in 0..255, uint8 or float -> logits (N, num_classes)."""
        logits: Tensor = self.network(self.normalise(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) in 0..255 -> (N, num_features), what the head sees in evaluation."""
        pixels = self.normalise(images)
        embed = getattr(self.network, "embed", None)
        if embed is not None:
            embedded: Tensor = embed(pixels)
            return embedded
        seen: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.network(pixels)
        finally:
            handle.remove()
        return seen[-1]

    @property
    def head_name(self) -> str:
        """Where in the network the last linear layer is.

        Raises:
            UsageError: the network has no linear layer with `num_classes` outputs.
        """
        declared = getattr(self.network, "head_name", None)
        if isinstance(declared, str):
            return declared
        linear = [
            name
            for name, module in self.network.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == self.num_classes
        ]
        if not linear:
            raise UsageError(
                f"'{self.name}' has no linear layer with {self.num_classes} outputs as its head, "
                "so it cannot be trained on kept features"
            )
        return str(linear[-1])

    @property
    def head(self) -> nn.Linear:
        """The last layer."""
        head = self.network.get_submodule(self.head_name)
        assert isinstance(head, nn.Linear)
        return head

    @property
    def num_features(self) -> int:
        """Length of what `features` gives."""
        return self.head.in_features

    @property
    def stages(self) -> tuple[tuple[str, nn.Module], ...]:
        """(name, module) from the input to the head.

        A network that does not say has its children, in the order in which they were made; those
        that are lists of layers count one by one.
        """
        declared = getattr(self.network, "stages", None)
        if isinstance(declared, tuple):
            return declared
        return tuple(_children(self.network))

    def train(self, mode: bool = True) -> Classifier:
        """As torch's; frozen batch norms, and those of frozen stages, stay in evaluation mode."""
        super().train(mode)
        if mode:
            for module in self.modules():
                if isinstance(module, _BatchNorm) and (
                    self.batch_norm_frozen
                    or (module.weight is not None and not module.weight.requires_grad)
                ):
                    module.eval()
        return self

    def extra_repr(self) -> str:
        return f"name={self.name!r}, image_px={self.image_px}, channels={self.channels}"


def _depthwise(forward: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
    """A depthwise convolution; in float32 where a processor trains in bfloat16.

    Its backward pass in bfloat16 takes a processor three times as long as in float32, more than
    the other layers gain: EfficientNet-Lite0 at 160 px trains at 16.7 images/s and core in
    bfloat16, 24.3 in float32, and 30.1 in bfloat16 with these layers in float32 (Zen 4, torch
    2.13). Forward alone is fastest in bfloat16 throughout.
    """
    lowered = maps.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if not (lowered and torch.is_grad_enabled()):
        return forward(maps)
    with torch.autocast("cpu", enabled=False):
        return forward(maps.float()).to(torch.get_autocast_dtype("cpu"))


def _children(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in network.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            for index, part in child.named_children():
                if any(True for _ in part.parameters()):
                    yield f"{name}.{index}", part
        elif any(True for _ in child.parameters()):
            yield name, child


def build(
    name: str | Callable[..., nn.Module],
    *,
    num_classes: int,
    image_px: int,
    channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    dropout: float | None = None,
    stochastic_depth: float | None = None,
    weights: str | None = None,
) -> Classifier:
    """A model with initial or pretrained weights, on the processor.

    Its random initial values come from torch's global generator.

    Args:
        name: of the zoo (`vidi models` lists them), `timm:NAME` or a name that only timm knows,
            `module:function`, or the function itself: it is called with `num_classes`, and with
            `image_px`, `channels`, `dropout` and `stochastic_depth` where it has such arguments.
        image_px: side of the images, in pixels.
        channels: 1 for grey, 3 for colour; others work too.
        mean, std: of each channel, in 0..1.
        dropout, stochastic_depth: None leaves them at what the model has by itself.
        weights: None, "imagenet", or the path of a file: .safetensors, or a checkpoint of torch.

    Raises:
        UsageError: no such model or weights, or a size, channel or class count that cannot be.
    """
    _check_request(num_classes=num_classes, channels=channels, mean=mean, std=std)
    asked = {
        "num_classes": num_classes,
        "image_px": image_px,
        "channels": channels,
        "dropout": dropout,
        "stochastic_depth": stochastic_depth,
    }
    own = isinstance(name, str) and name in MODELS
    shown = name if isinstance(name, str) else name_of(name)
    if isinstance(name, str) and name in MODELS:
        network = _from_zoo(name, asked, pretrained=weights is not None)
    elif isinstance(name, str) and (found := _timm_name(name)) is not None:
        shown = f"timm:{found}"
        network = _from_timm(found, asked, weights)
    elif callable(name) or ":" in name:
        network = _from_function(load(name) if isinstance(name, str) else name, asked, shown)
    else:
        raise _unknown(name)
    classifier = Classifier(
        network, name=shown, mean=mean, std=std, image_px=image_px, num_classes=num_classes
    )
    if not own:
        _check_logits(classifier)
    if weights is not None and not (shown.startswith("timm:") and weights == "imagenet"):
        classifier.fit = _load(classifier, weights)
    return classifier


def check_name(name: str) -> None:
    """Whether `build` knows it; nothing is built, and `module:function` is taken as it is.

    Raises:
        UsageError, MissingExtra: as `build`.
    """
    if name not in MODELS and _timm_name(name) is None and ":" not in name:
        raise _unknown(name)


def _unknown(name: str) -> UsageError:
    return UsageError(f"there is no model '{name}'", fix=nearest(name, MODELS))


def _check_request(
    *, num_classes: int, channels: int, mean: Sequence[float], std: Sequence[float]
) -> None:
    if num_classes < 2:
        raise UsageError(
            f"num_classes = {num_classes}: a classifier tells two or more classes apart"
        )
    if channels < 1:
        raise UsageError(f"channels = {channels}: an image has at least one")
    if len(mean) != channels or len(std) != channels:
        raise UsageError(
            f"mean has {len(mean)} and std {len(std)} numbers for images of {channels} channels"
        )
    if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0.0:
        raise UsageError(f"mean = {tuple(mean)}, std = {tuple(std)}: std has to be above zero")


def _from_zoo(name: str, asked: dict[str, Any], *, pretrained: bool) -> nn.Module:
    spec = MODELS[name]
    if asked["image_px"] < spec.min_image_px:
        raise UsageError(
            f"'{name}' takes images from {spec.min_image_px} px on, not {asked['image_px']} px",
            fix=f"set data.image_px to {spec.min_image_px} or more",
        )
    known = inspect.signature(spec.build).parameters
    for setting in ("dropout", "stochastic_depth"):
        if asked[setting] is not None and setting not in known:
            raise UsageError(f"model '{name}' has no {setting.replace('_', ' ')} to set")
    given = {key: value for key, value in asked.items() if key in known and value is not None}
    if pretrained and "small_kernel" in known:
        # The kernel of the weights stays; from scratch, a small image gets a smaller one.
        given["small_kernel"] = 7
    return spec.build(**given)


def _from_function(function: Any, asked: dict[str, Any], name: str) -> nn.Module:
    if not callable(function):
        raise UsageError(
            f"'{name}' is a {type(function).__name__}, not a function that builds a model"
        )
    known = inspect.signature(function).parameters
    for setting in ("dropout", "stochastic_depth"):
        if asked[setting] is not None and setting not in known:
            raise UsageError(f"'{name}' takes no argument '{setting}', which was asked for")
    given = {
        key: value
        for key, value in asked.items()
        if key in known and value is not None and key != "num_classes"
    }
    if "num_classes" in known:
        network = function(num_classes=asked["num_classes"], **given)
    elif known:
        network = function(asked["num_classes"], **given)
    else:
        raise UsageError(f"'{name}' takes no number of classes", fix="def tiny(num_classes: int)")
    if not isinstance(network, nn.Module):
        raise UsageError(f"'{name}' gives a {type(network).__name__}, not a torch.nn.Module")
    return network


# "resnet50", "vit_small_patch16_224.augreg_in1k"; no path, no module, no address.
_TIMM_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)?")


def _timm_name(name: str) -> str | None:
    """What timm calls the model; None when the name is not meant for timm.

    Raises:
        MissingExtra: asked for by "timm:", and timm is not installed.
        UsageError: asked for by "timm:", and there is no such model.
    """
    asked = name.startswith("timm:")
    bare = name.removeprefix("timm:")
    if not _TIMM_NAME.fullmatch(bare):
        if asked:
            raise UsageError(
                f"'{name}' is not the name of a timm model",
                fix="names from the network are not taken here, only those that timm lists",
            )
        return None
    if not asked and importlib.util.find_spec("timm") is None:
        return None
    timm = import_timm()
    architecture, _, tag = bare.partition(".")
    if timm.is_model(architecture) and (
        not tag or bare in timm.list_models(f"{architecture}.*", pretrained=True)
    ):
        return bare
    if asked:
        raise UsageError(f"timm has no model '{bare}'", fix=nearest(bare, timm.list_models()))
    return None


def import_timm() -> Any:
    """The module timm, also beside a torch without CUDA.

    Raises:
        MissingExtra: timm or torchvision is not installed.
    """
    declare_missing_operators()
    try:
        import timm  # noqa: PLC0415 - an extra, and slow to import
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"models of timm need a package that is not installed: {error.name}",
            fix='pip install "vidi[timm]"',
        ) from None
    return timm


@functools.cache
def declare_missing_operators() -> torch.library.Library | None:
    """Make `import torchvision` work where its compiled library cannot load.

    The torchvision of the package index is built for CUDA. Beside a torch for processors its
    library does not load, and its import fails at the first operator that it describes. Declaring
    the two that it describes is enough for everything that has nothing to do with boxes. Returns
    what holds the declarations, which have to be held; None where torchvision needs no help.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return None
    for compiled in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(compiled)  # type: ignore[no-untyped-call]
        except OSError:
            continue
        return None
    declared = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        declared.define(schema)  # type: ignore[no-untyped-call]
    return declared


def _from_timm(name: str, asked: dict[str, Any], weights: str | None) -> nn.Module:
    """A model of timm; its own code adapts stem and head, and loads its weights."""
    timm = import_timm()
    if weights not in (None, "imagenet") and not _is_file_name(weights):
        raise UsageError(
            f"there are no weights '{weights}' for model 'timm:{name}'",
            fix="give 'imagenet' or a file",
        )
    settings: dict[str, Any] = {
        "pretrained": weights == "imagenet",
        "num_classes": asked["num_classes"],
        "in_chans": asked["channels"],
    }
    if asked["dropout"] is not None:
        settings["drop_rate"] = asked["dropout"]
    if asked["stochastic_depth"] is not None:
        settings["drop_path_rate"] = asked["stochastic_depth"]
    try:
        # Networks of a fixed size (most transformers) have to be told; the others do not know it.
        try:
            network: nn.Module = timm.create_model(name, img_size=asked["image_px"], **settings)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            network = timm.create_model(name, **settings)
    except TypeError as error:
        raise UsageError(f"model 'timm:{name}' does not take a setting: {error}") from None
    except (RuntimeError, OSError) as error:
        raise UsageError(
            f"the weights of 'timm:{name}' cannot be had: {str(error).splitlines()[0]}",
            fix="timm downloads them once; or train from scratch with model.weights = 'none'",
        ) from error
    return network


def name_of(function: Callable[..., nn.Module]) -> str:
    """The name that `config.load` finds it by, if it stands at the top of a module."""
    module = getattr(function, "__module__", type(function).__module__)
    return f"{module}:{getattr(function, '__qualname__', type(function).__qualname__)}"


def _check_logits(classifier: Classifier) -> None:
    """Two blank images through a network that is not ours, before any training starts."""
    size = classifier.image_px
    images = torch.zeros(2, classifier.channels, size, size, dtype=torch.uint8)
    was_training = classifier.training
    classifier.eval()
    try:
        with torch.no_grad():
            logits = classifier(images)
    except RuntimeError as error:
        raise UsageError(
            f"'{classifier.name}' fails on images of {classifier.channels} x {size} x {size}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    finally:
        classifier.train(was_training)
    expected = (2, classifier.num_classes)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(
            f"'{classifier.name}' gives {got} for two images, not logits of shape {expected}"
        )


def _pretrained(name: str, weights: str) -> Weights:
    source = IMAGENET.get(name) if weights == "imagenet" else None
    if source is None:
        having = ", ".join(IMAGENET)
        raise UsageError(
            f"there are no weights '{weights}' for model '{name}'",
            fix=f"'imagenet' is there for {having}; or leave model.weights at 'none'",
        )
    return source


def weights_facts(name: str, weights: str) -> WeightsFacts | None:
    """The size and normalisation that come with pretrained weights; None for "none".

    A file does not say its own. It is taken to be like the published weights of that model; None
    where there are none.

    Raises:
        UsageError: there are no such weights for this model.
    """
    if weights == "none":
        return None
    if _is_file_name(weights):
        return IMAGENET[name].pixels if name in IMAGENET else None
    found = None if name in MODELS else _timm_name(name)
    if found is None or weights != "imagenet":
        return _pretrained(name, weights).pixels
    config = import_timm().get_pretrained_cfg(found)
    if config is None or not config.has_weights:
        raise UsageError(f"timm has no pretrained weights for '{found}'")
    return WeightsFacts(
        image_px=config.input_size[-1],
        mean=config.mean,
        std=config.std,
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
        crop_fraction=config.crop_pct,
    )


def _load(classifier: Classifier, weights: str) -> Fit:
    if _is_file_name(weights):
        state = weights_module.from_file(Path(weights))
    else:
        source = _pretrained(classifier.name, weights)
        state = weights_module.obtain(source.source, source.sha256, size_bytes=source.size_bytes)
    if any(name.startswith("network.") for name in state):
        # A classifier's own file. Its pixels are not taken over: this one was given its own.
        pixels = {"scale", "shift"}
        state = {
            name.removeprefix("network."): tensor
            for name, tensor in state.items()
            if name not in pixels
        }
    elif isinstance(classifier.network, EfficientNet):
        state = with_our_names(state)
    return weights_module.fit(classifier.network, state, head_name=classifier.head_name)


def _is_file_name(weights: str) -> bool:
    return Path(weights).suffix in (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")


def start_from(classifier: Classifier, images: Callable[[], Tensor]) -> bool:
    """Let a network compute what it does not learn from some training images; False: nothing to.

    Called once, before the first step; a few thousand images are enough. The first layer of
    "small_resnet" is computed so. It is part of the state dict.

    Args:
        images: gives (N, C, H, W) in 0..255, as the model sees them, not augmented; only asked
            when there is something to compute.
    """
    whiten = getattr(classifier.network, "whiten", None)
    if whiten is None:
        return False
    whiten(classifier.normalise(images()))
    return True


def freeze_batch_norm(classifier: Classifier, frozen: bool = True) -> None:
    """Batch norms keep their statistics, in training too; their scale and shift still learn."""
    classifier.batch_norm_frozen = frozen
    classifier.train(classifier.training)


def freeze(classifier: Classifier, num_stages: int) -> tuple[str, ...]:
    """The first `num_stages` stages do not learn, the others do; returns the frozen ones' names.

    Zero unfreezes everything. Batch norms of frozen stages keep their statistics too.

    Raises:
        UsageError: that would freeze the head too, or is negative.
    """
    stages = classifier.stages
    if not 0 <= num_stages < len(stages):
        raise UsageError(
            f"{num_stages} stages of '{classifier.name}' cannot be frozen",
            fix=f"it has {len(stages)}, and the last one, the head, has to learn",
        )
    classifier.network.requires_grad_(True)
    for _, module in stages[:num_stages]:
        module.requires_grad_(False)
    classifier.train(classifier.training)
    return tuple(name for name, _ in stages[:num_stages])


def facts(classifier: Classifier) -> ModelFacts:
    """Counted on the model, at its own image size, with one blank image."""
    device = classifier.scale.device
    size = classifier.image_px
    image = torch.zeros(1, classifier.channels, size, size, dtype=torch.uint8, device=device)
    was_training = classifier.training
    classifier.eval()
    counter = FlopCounterMode(display=False)
    # With gradients: without, a network may compute the same in another way (Lite's padding does).
    with torch.enable_grad(), counter:
        classifier(image)
    classifier.train(was_training)
    try:
        num_features = classifier.num_features
    except UsageError:
        num_features = None
    return ModelFacts(
        name=classifier.name,
        parameters=sum(parameter.numel() for parameter in classifier.network.parameters()),
        # torch counts a multiplication and its addition as two.
        multiply_adds=counter.get_total_flops() // 2,
        num_features=num_features,
        stages=tuple(name for name, _ in classifier.stages),
    )


def activation_bytes(classifier: Classifier) -> int:
    """What a training step keeps in memory for the backward pass, for one more image.

    Measured in float32 on two sizes of batch, so that what does not grow with it is left out.
    """
    device = classifier.scale.device
    parameters = {p.untyped_storage().data_ptr() for p in classifier.parameters()}

    def kept(count: int) -> int:
        size = classifier.image_px
        images = torch.zeros(count, classifier.channels, size, size, device=device)
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = classifier(images)
        # Held until here, or its memory would be given to another tensor and counted once.
        assert logits.requires_grad
        return sum(storages.values())

    statistics = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
    was_training = classifier.training
    classifier.train()
    try:
        return (kept(4) - kept(2)) // 2
    finally:
        classifier.train(was_training)
        with torch.no_grad():
            for name, buffer in classifier.named_buffers():
                buffer.copy_(statistics[name])


def reset_head(classifier: Classifier) -> None:
    """The head's weights and bias become zero: every class is as likely as the other.

    The features then get no gradient in the first step, so a pretrained backbone is not shaken by
    a head that knows nothing.
    """
    with torch.no_grad():
        for parameter in classifier.head.parameters():
            parameter.zero_()


def set_head(classifier: Classifier, weight: Tensor, bias: Tensor) -> None:
    """Start from a head fitted on kept features (linear probing, then fine-tuning; Kumar 2022).

    Args:
        weight: (num_classes, num_features), on features as `Classifier.features` gives them.
        bias: (num_classes,).

    Raises:
        UsageError: another shape, or a head without a bias.
    """
    head = classifier.head
    if head.bias is None:
        raise UsageError(f"the head of '{classifier.name}' has no bias to set")
    for name, given, own in (("weight", weight, head.weight), ("bias", bias, head.bias)):
        if given.shape != own.shape:
            raise UsageError(
                f"the head's {name} is {tuple(own.shape)}, and {tuple(given.shape)} was given"
            )
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)


def fused(classifier: Classifier) -> Classifier:
    """A copy for inference with each batch norm multiplied into the convolution before it.

    A pair is found by looking on: a batch norm whose input is the very tensor that a convolution
    put out. Its logits are compared with the original's before it is given out.

    Raises:
        UsageError: the logits differ; a convolution's output is used elsewhere as well.
    """
    copied = copy.deepcopy(classifier).eval()
    produced: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: dict[nn.BatchNorm2d, nn.Conv2d] = {}

    def after_convolution(module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        # The tensor is held, so that its identity is not given to another.
        produced[id(output)] = (module, output)

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        if id(inputs[0]) in produced:
            pairs[module] = produced[id(inputs[0])][0]

    handles = [
        module.register_forward_hook(after_convolution)
        for module in copied.modules()
        if isinstance(module, nn.Conv2d)
    ]
    handles += [
        module.register_forward_pre_hook(before_norm)
        for module in copied.modules()
        # Not its descendants: timm's have an activation inside.
        if type(module) is nn.BatchNorm2d
    ]
    generator = torch.Generator().manual_seed(0)
    shape = (2, classifier.channels, classifier.image_px, classifier.image_px)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images = images.to(classifier.scale.device)
    with torch.no_grad():
        expected = copied(images)
        for handle in handles:
            handle.remove()
        places = {module: name for name, module in copied.named_modules()}
        for norm, convolution in pairs.items():
            assert norm.running_mean is not None
            assert norm.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            convolution.weight, convolution.bias = weight, bias
            copied.set_submodule(places[norm], nn.Identity())
        got = copied(images)
    if not torch.allclose(got, expected, rtol=1e-3, atol=1e-3):
        raise UsageError(f"the batch norms of '{classifier.name}' cannot be fused")
    return copied


def own_parts(classifier: Classifier) -> tuple[tuple[str, nn.Module], ...]:
    """(name of the stage, module) of what the network calls, from the input to the head."""
    own = set(classifier.modules())
    # The tail of a declared stage may be a container made on the fly: it counts as what it holds.
    return tuple(
        (name, part)
        for name, stage in classifier.stages
        for part in ([stage] if stage in own else stage.children())
    )


def checkpoint_activations(classifier: Classifier) -> None:
    """Keep only what enters each stage, and compute the rest again in the backward pass.

    Trades a third more computing for a fraction of the memory (Chen et al. 2016). The gradients,
    the statistics of batch norms and the random numbers of dropout are the same. Names of
    parameters stay. It is not undone: build the model anew.
    """
    for module in classifier.modules():
        # What is computed from again must not have been written over meanwhile.
        if isinstance(module, nn.ReLU | nn.ReLU6 | nn.SiLU | nn.Hardswish):
            module.inplace = False
    for name, part in own_parts(classifier):
        if name != "head" and part is not classifier.head:
            part.forward = functools.partial(_checkpointed, part, part.forward)


def _checkpointed(module: nn.Module, forward: Callable[..., Any], *inputs: Tensor) -> Any:
    if not (module.training and torch.is_grad_enabled()):
        return forward(*inputs)
    return checkpoint(
        forward,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _without_statistics(module)),
    )


@contextlib.contextmanager
def _without_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms see the batch a second time; their running statistics do not."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


@dataclass(frozen=True, slots=True)
class Listing:
    """One line of `vidi models`; None: not known without building or downloading it.

    Args:
        parameters: how many numbers it learns, with a head for ImageNet's 1,000 classes, or for 10
            where nobody trains it on ImageNet.
        multiply_adds: of one image at `image_px`, forward.
        image_px: the side of the images that it is made for.
        accuracy: top-1 on ImageNet with the published weights, as a share.
        licence: of those weights.
        at_hand: they need no network.
    """

    name: str
    parameters: int | None
    multiply_adds: int | None
    image_px: int | None
    accuracy: float | None
    licence: str | None
    at_hand: bool


def list_models(filter: str = "", *, timm: bool = False) -> tuple[Listing, ...]:
    """Models whose names contain `filter` or match it as a pattern; no weight is allocated.

    The zoo's first; with `timm` also those that timm has pretrained weights for, each under its
    name and tag ("timm:resnet50.a1_in1k").

    Raises:
        MissingExtra: timm is asked for and not installed.
    """
    pattern = filter if any(sign in filter for sign in "*?[") else f"*{filter}*"
    zoo = [_listing(name) for name in MODELS if fnmatch.fnmatchcase(name, pattern)]
    if not timm:
        return tuple(zoo)
    names = import_timm().list_pretrained()
    return (
        *zoo,
        *(_timm_listing(name) for name in names if fnmatch.fnmatchcase(f"timm:{name}", pattern)),
    )


def _timm_listing(name: str) -> Listing:
    published = import_timm().get_pretrained_cfg(name)
    return Listing(
        name=f"timm:{name}",
        parameters=None,
        multiply_adds=None,
        image_px=published.input_size[-1],
        accuracy=None,
        licence=published.license,
        at_hand=_in_hub_cache(published.hf_hub_id, published.hf_hub_filename),
    )


def _in_hub_cache(repository: str | None, file: str | None) -> bool:
    """Whether huggingface_hub, which timm loads weights with, has them on this machine."""
    if repository is None:
        return False
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - comes with timm

    names = (file,) if file else ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


def _listing(name: str) -> Listing:
    spec, published = MODELS[name], IMAGENET.get(name)
    with torch.device("meta"):
        network = spec.build().eval()
        channels = inspect.signature(spec.build).parameters["channels"].default
        images = torch.zeros(1, channels, spec.image_px, spec.image_px)
        multiply_adds = _multiply_adds(network, images)
    return Listing(
        name=name,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        multiply_adds=multiply_adds,
        image_px=spec.image_px,
        accuracy=published.accuracy if published else None,
        licence=published.licence if published else None,
        at_hand=published is not None and weights_module.is_at_hand(published.source),
    )


def _multiply_adds(network: nn.Module, images: Tensor) -> int:
    """Of convolutions and linear layers; all that there is in the zoo, and quicker than counting
    every operation, as `facts` has to."""
    total = 0

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        total += output.numel() * module.weight[0].numel()

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return total
