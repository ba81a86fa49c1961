"""A trained network as one file: raw uint8 pixels of any number of images in, answers out."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidi.errors import UsageError
from vidi.model import Classifier, fused
from vidi.predictor.trained import Answering
from vidi.zoo.efficientnet import SamePadConv2d

INPUT = "images"


def to_onnx(answering: Answering) -> bytes:
    """One ONNX file: "images" uint8 (batch, C, H, W) -> the outputs of `answering`."""
    from onnxscript import optimizer

    with _quiet():
        program = torch.onnx.export(
            answering,
            (_example(answering.classifier),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=list(answering.outputs),
            verbose=False,
            # All of its rewriting takes a minute, and onnxruntime does it again.
            optimize=False,
        )
        assert program is not None
        # This part does not: with bounds of Clip that are computed, onnxruntime keeps them apart
        # from their convolutions and turns the maps around between the two, at 0.6 of the rate.
        optimizer.fold_constants(program.model)
        optimizer.remove_unused_nodes(program.model)
    packed: bytes = program.model_proto.SerializeToString()
    return packed


def folded(classifier: Classifier) -> Classifier:
    """A copy with paddings that every runtime has, and batch norms inside the convolutions: twice
    as fast on a processor, the same up to rounding."""
    plain = plain_convolutions(classifier)
    try:
        return fused(plain)
    except UsageError:
        return plain


def plain_convolutions(classifier: Classifier) -> Classifier:
    """A copy whose convolutions pad the same on both sides, as every runtime has them.

    TensorFlow's padding depends on the size of the maps. That size is known here; one row and
    column of zeros in the kernel make an uneven padding even (see `SamePadConv2d`), once and not
    in the graph, where onnxruntime fails on a kernel that is computed.
    """
    copied = copy.deepcopy(classifier).eval()
    sizes: dict[SamePadConv2d, tuple[int, ...]] = {}

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, SamePadConv2d)
        sizes[module] = tuple(inputs[0].shape[2:])

    padded = [module for module in copied.modules() if isinstance(module, SamePadConv2d)]
    handles = [module.register_forward_pre_hook(look) for module in padded]
    with torch.no_grad():
        copied(_example(classifier))
    for handle in handles:
        handle.remove()
    names = {module: name for name, module in copied.named_modules()}
    for module in padded:
        totals = module.totals(sizes[module])
        if len({total % 2 for total in totals}) > 1:
            continue
        odd = totals[0] % 2
        side = [total // 2 + odd for total in totals]
        plain = nn.Conv2d(
            module.in_channels,
            module.out_channels,
            (module.kernel_size[0] + odd, module.kernel_size[1] + odd),
            (module.stride[0], module.stride[1]),
            padding=(side[0], side[1]),
            groups=module.groups,
            bias=module.bias is not None,
        )
        with torch.no_grad():
            plain.weight.copy_(functional.pad(module.weight, (odd, 0, odd, 0)))
            if module.bias is not None:
                assert plain.bias is not None
                plain.bias.copy_(module.bias)
        copied.set_submodule(names[module], plain.eval())
    return copied


def to_torch(answering: Answering) -> bytes:
    """A file of torch.export (.pt2): uint8 (batch, C, H, W) -> the outputs of `answering`."""
    buffer = io.BytesIO()
    with _quiet():
        program = torch.export.export(
            answering,
            (_example(answering.classifier),),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        # It would be kept as a pickle, and nothing needs it.
        program.example_inputs = None
        torch.export.save(program, buffer)
    return buffer.getvalue()


def _example(classifier: Classifier) -> Tensor:
    shape = (2, classifier.channels, classifier.image_px, classifier.image_px)
    return torch.zeros(shape, dtype=torch.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters warn of their own future, about which nobody here can do anything."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
