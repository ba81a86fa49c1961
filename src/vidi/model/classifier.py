"""From pixels to logits: a network with its normalisation, its head and its stages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidi.augment import whole_views
from vidi.augment_settings import WholeViews
from vidi.errors import UsageError
from vidi.weights import Fit


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
        # In evaluation the logits are the mean of those of the image and of its other views.
        self.views: WholeViews = "plain"
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
        return self.all_views(images, self.one_view(images))

    def all_views(self, images: Tensor, logits: Tensor) -> Tensor:
        """What `forward` says, from what `one_view` said of the same images."""
        if self.views == "plain" or self.training:
            return logits
        _, *others = whole_views(images, self.views)
        for view in others:
            logits = logits + self.one_view(view)
        return logits / (1 + len(others))

    def one_view(self, images: Tensor) -> Tensor:
        """As `forward`, of the images alone and never of other views of them."""
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

    def no_weight_decay(self) -> set[str]:
        """Parameters that the network says must not shrink (timm: position embeddings)."""
        declared = getattr(self.network, "no_weight_decay", None)
        return {f"network.{name}" for name in declared()} if callable(declared) else set()

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


def own_parts(classifier: Classifier) -> tuple[tuple[str, nn.Module], ...]:
    """(name of the stage, module) of what the network calls, from the input to the head."""
    own = set(classifier.modules())
    # The tail of a declared stage may be a container made on the fly: it counts as what it holds.
    return tuple(
        (name, part)
        for name, stage in classifier.stages
        for part in ([stage] if stage in own else stage.children())
    )
