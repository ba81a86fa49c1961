"""A plan to its network, and a run directory to its trained network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vidi import model
from vidi.errors import DamagedError, UsageError
from vidi.model import Classifier
from vidi.plan import Plan
from vidi.run import Checkpoint, Run
from vidi.shards import put
from vidi.zoo import MODELS

# Of so many networks the initial weights are kept.
MOST_KEPT: Final = 4

# What decides the initial weights of a network -> those weights.
Initial = MutableMapping[tuple[object, ...], dict[str, Tensor]]


def build_model(
    plan: Plan,
    own: Callable[..., nn.Module] | None = None,
    *,
    initial: Initial | None = None,
    saved: Mapping[str, Tensor] | None = None,
) -> Classifier:
    """The network of a plan, with its initial weights, on its device.

    Args:
        plan: what was decided.
        own: the user's own network, where the plan names one as `module:name`. A name that stands
            in a file is never imported; it has to be given again.
        initial: weights that this process has drawn before, for whoever builds many: drawing the 11
            million of resnet18 takes longer than everything else at the start of a trial.
        saved: what the caller will load into it; pretrained weights are not looked for then.

    Raises:
        UsageError: no such model, one that cannot take these images, or `own` is missing.
    """
    if model.is_own(plan.model.name) and own is None:
        raise UsageError(
            f"this run trained your own network '{plan.model.name}', and names in files are not "
            "imported",
            fix=f"give it again: --model {plan.model.name}",
        )
    drawn = own is None and plan.model.name in MODELS and plan.model.weights == "none"
    key = _of_the_weights(plan)
    if initial is not None and drawn and key in initial:
        # Nothing is drawn where there is no memory to draw it into.
        with torch.device("meta"):
            classifier = _built(plan, None, saved)
        known = {name: tensor.clone() for name, tensor in initial[key].items()}
        classifier.load_state_dict(known, assign=True)
        return classifier
    torch.manual_seed(plan.seed)
    classifier = _built(plan, own, saved)
    layout = torch.channels_last if plan.execution.channels_last else torch.contiguous_format
    classifier.to(device=plan.execution.device, memory_format=layout)  # type: ignore[call-overload]
    if initial is not None and drawn:
        while len(initial) >= MOST_KEPT:
            del initial[next(iter(initial))]
        initial[key] = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    return classifier


def _of_the_weights(plan: Plan) -> tuple[object, ...]:
    """Everything that decides initial weights and where they lie; dropout and its like do not."""
    shape = plan.model.name, plan.model.num_classes, plan.pixels
    return *shape, plan.seed, plan.execution.device, plan.execution.channels_last


def _built(
    plan: Plan, own: Callable[..., nn.Module] | None, saved: Mapping[str, Tensor] | None
) -> Classifier:
    classifier = model.build(
        own or plan.model.name,
        num_classes=plan.model.num_classes,
        image_px=plan.pixels.image_px,
        channels=plan.pixels.channels,
        mean=plan.pixels.mean,
        std=plan.pixels.std,
        dropout=plan.model.dropout,
        stochastic_depth=plan.model.stochastic_depth,
        weights=None if plan.model.weights == "none" else plan.model.weights,
        saved=saved,
    )
    if plan.model.freeze_batch_norm:
        model.freeze_batch_norm(classifier)
    classifier.views = plan.model.views
    if plan.execution.recompute:
        model.checkpoint_activations(classifier)
    return classifier


def trained_model(
    run: Run, plan: Plan, own: Callable[..., nn.Module] | None = None
) -> tuple[Classifier, int]:
    """The network of a run with the weights that validated best, and the step that they are of.

    Args:
        plan: the run's, perhaps for another device.
        own: as of `build_model`.

    Raises:
        DamagedError: there is no valid checkpoint of the best step.
        UsageError: nothing was trained yet, or as `build_model`.
    """
    saved, step = _best_of(run)
    classifier = build_model(plan, own, saved=saved)
    put_weights(classifier, saved, origin=f"{run.path}, step {step}")
    return classifier, step


def load_best(run: Run, classifier: Classifier) -> int:
    """Load the weights that validated best, the average where there is one; returns their step.

    Raises:
        DamagedError: there is no valid checkpoint of the best step.
        UsageError: nothing was trained yet.
    """
    saved, step = _best_of(run)
    put_weights(classifier, saved, origin=f"{run.path}, step {step}")
    return step


def _best_of(run: Run) -> tuple[dict[str, Tensor], int]:
    newest, _ = run.newest_checkpoint()
    if newest is None:
        raise UsageError(
            f"{run.path} has no checkpoint yet",
            fix=f"train first: vidi train DATA --out {run.path}",
        )
    best: Any = newest.state["best"]
    step = newest.step if best is None else int(best["step"])
    checkpoint = newest if step == newest.step else run.checkpoint(step)
    return answering_weights(checkpoint, origin=f"{run.path}, step {step}"), step


def answering_weights(checkpoint: Checkpoint, *, origin: str) -> dict[str, Tensor]:
    """Those that a run answers with: of the average, where there is one.

    Raises:
        DamagedError: they are not safetensors.
    """
    averaged = "ema.safetensors" in checkpoint.names
    return unpacked(
        checkpoint.read("ema.safetensors" if averaged else "model.safetensors"), origin=origin
    )


def unpacked(weights: bytes, *, origin: str) -> dict[str, Tensor]:
    """Raises DamagedError where they are not safetensors."""
    try:
        return safetensors.torch.load(weights)
    except safetensors.SafetensorError as error:
        raise DamagedError(f"the weights of {origin} are damaged: {error}") from None


def put_weights(classifier: nn.Module, saved: Mapping[str, Tensor], *, origin: str) -> None:
    """Copy saved weights into a model, keeping its device and memory layout.

    Raises:
        DamagedError: names or shapes differ; they are listed.
    """
    own = classifier.state_dict()
    wrong = [f"{name} is missing" for name in own.keys() - saved.keys()]
    wrong += [f"{name} is unknown" for name in saved.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(saved[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & saved.keys()
        if own[name].shape != saved[name].shape
    ]
    if wrong:
        listed = "; ".join(sorted(wrong)[:5])
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise DamagedError(f"the weights of {origin} do not fit the model: {listed}{more}")
    with torch.no_grad():
        for name, tensor in own.items():
            put(tensor, saved[name])
