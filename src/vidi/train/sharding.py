"""A state that is whole in each process becomes one that they hold together."""

from __future__ import annotations

import torch

from vidi import shards
from vidi.errors import ConfigError
from vidi.model import Classifier, own_parts
from vidi.plan import Plan
from vidi.train.prepare import build_optimizer
from vidi.train.state import State
from vidi.words import first_line


def shard_state(state: State, plan: Plan) -> None:
    """Divide weights, average and optimizer between the processes, which all call this.

    Raises:
        ConfigError: this network cannot be divided.
    """
    models = [state.model]
    if state.average is not None:
        assert isinstance(state.average.model, Classifier)
        models.append(state.average.model)
    device = state.model.scale.device
    try:
        for model in models:
            shards.shard(model, [part for _, part in own_parts(model)], device)
            _try(model)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"machine.sharding = 'full' cannot divide '{plan.model.name}': {first_line(error)}",
            fix="leave it out; machine.recompute = true and train.accumulate save memory too",
        ) from error
    state.take_over(build_optimizer(plan, state.model))


def _try(model: Classifier) -> None:
    """One image: a network that reads the weights of its layers past them finds parts there."""
    px = model.image_px
    image = torch.zeros(1, model.channels, px, px, device=model.scale.device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        model(image)
    model.train(was_training)
