"""What a model costs: parameters, multiply-adds, memory of a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vidi.errors import UsageError
from vidi.facts import ModelFacts
from vidi.model.classifier import Classifier


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
        activation_bytes=_activation_bytes_if_any(classifier),
        num_features=num_features,
        stages=tuple(name for name, _ in classifier.stages),
        loaded="" if classifier.fit is None else str(classifier.fit),
    )


def _activation_bytes_if_any(classifier: Classifier) -> int | None:
    """None where a network of somebody else's cannot be shown four blank images in training."""
    try:
        return activation_bytes(classifier)
    except (RuntimeError, ValueError):
        return None


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
        # What dropout draws here is not missing from what is drawn later.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return (kept(4) - kept(2)) // 2
    finally:
        classifier.train(was_training)
        with torch.no_grad():
            for name, buffer in classifier.named_buffers():
                buffer.copy_(statistics[name])


def multiply_adds(network: nn.Module, images: Tensor) -> int:
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
