"""Optimizers by their torch names, parameter groups, learning rates and the weight average.

What tunes together is separated here, so that a search over one number does not move another:

- The learning rate is a group's own `base_learning_rate` times a multiplier from the schedule
  (`set_learning_rate`). No optimizer meets a scheduler object.
- Weight decay is decoupled (Loshchilov and Hutter 2019) and does not follow the learning rate, the
  batch size or the momentum: a weight that gets no gradient shrinks, in one step at the peak of the
  schedule, by

      weight_decay * REFERENCE_LEARNING_RATE[name] * batch_size / 256

  (by REFERENCE_LEARNING_RATE["sgd"] / (1 - 0.9) for SGD). At the reference rate, 256 images and
  SGD's momentum of 0.9 the number means what it means to torch: AdamW's 0.05 is torch's 0.05 at
  1e-3, SGD's 5e-4 is torch's 5e-4 at 0.1. The schedule scales it together with the learning rate.
- Norm parameters and biases (everything with fewer than two dimensions) do not decay.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.adamw import adamw

from vidi.errors import MissingExtra, UsageError, nearest
from vidi.finite import all_finite
from vidi.shards import in_all, is_sharded, local

# The peak learning rates at which a weight decay means what it means to torch.
REFERENCE_LEARNING_RATE: Final[Mapping[str, float]] = {
    "sgd": 0.1,
    "adam": 1e-3,
    "adamw": 1e-3,
    "nadam": 1e-3,
    "rmsprop": 1e-3,
    "adagrad": 1e-2,
    "adadelta": 1.0,
    "muon": 0.02,
    "muon_hyperball": 1e-2,
    "lbfgs": 1.0,
    # The first has no momentum that would multiply the decay by ten.
    "sgd_schedule_free": 1.0,
    "adamw_schedule_free": 1e-3,
}
_REFERENCE_BATCH_SIZE = 256
_REFERENCE_MOMENTUM = 0.9


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that are treated alike.

    Args:
        name: unique among the groups; stays when a run is resumed.
        parameters: at least one.
        decays: weight decay applies.
        scale: their learning rate, as a share of the run's.
        hidden: filters and matrices between the first layer and the head: what Muon is for.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    decays: bool = True
    scale: float = 1.0
    hidden: bool = False


def groups(
    network: nn.Module,
    *,
    stages: Sequence[tuple[str, nn.Module]] = (),
    layer_decay: float = 1.0,
) -> tuple[Group, ...]:
    """Every parameter of `network` in exactly one group, frozen ones included.

    Frozen parameters get no gradient, so no optimizer touches them; that they are here keeps the
    order, and with it a checkpoint of the optimizer, when they are unfrozen later.

    Args:
        network: where the parameters come from.
        stages: ordered parts from input to head (`Classifier.stages`); parameters in none of them,
            like a class token, count to the first.
        layer_decay: each stage learns that many times as fast as the one after it; 1 for all alike.
            (Howard and Ruder 2018; Clark et al. 2020.)

    Raises:
        UsageError: `layer_decay` is not in (0, 1].
    """
    if not 0.0 < layer_decay <= 1.0:
        raise UsageError(f"layer_decay = {layer_decay}: give a number above 0, at most 1")
    named = list(network.named_parameters())
    stage_of = {
        id(parameter): index
        for index, (_, module) in enumerate(stages)
        for parameter in module.parameters()
    }
    # A first layer that is computed and not learnt is the first one all the same.
    matrices = [
        tensor for tensor in network.state_dict(keep_vars=True).values() if tensor.ndim >= 2
    ]
    ends = {id(matrices[0]), id(matrices[-1])} if matrices else set()
    # Some architectures name further parameters that must not shrink (timm: position embeddings).
    declared = getattr(network, "no_weight_decay", None)
    exempt = set(declared()) if callable(declared) else set()

    found: dict[tuple[int, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        decays = parameter.ndim >= 2 and name not in exempt
        hidden = decays and id(parameter) not in ends
        stage = stage_of.get(id(parameter), 0) if layer_decay < 1.0 else 0
        found.setdefault((stage, decays, hidden), []).append(parameter)
    last = max(len(stages) - 1, 0) if layer_decay < 1.0 else 0
    return tuple(
        Group(
            name=_group_name(
                stages[stage][0] if layer_decay < 1.0 and stages else "", decays, hidden
            ),
            parameters=tuple(parameters),
            decays=decays,
            scale=layer_decay ** (last - stage),
            hidden=hidden,
        )
        for (stage, decays, hidden), parameters in sorted(found.items(), reverse=True)
    )


def _group_name(stage: str, decays: bool, hidden: bool) -> str:
    kind = "hidden weights" if hidden else "weights" if decays else "norms and biases"
    return f"{stage}: {kind}" if stage else kind


def make(
    name: str,
    groups: Iterable[Group] | nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    batch_size: int = 256,
    fused: bool | None = None,
    **settings: Any,
) -> torch.optim.Optimizer:
    """The optimizer of that torch name.

    Args:
        name: one of `OPTIMIZERS`.
        groups: from `groups()`, your own, or a module, whose parameters all learn at one rate.
        learning_rate: the peak, for this batch size; torch's `lr`.
        weight_decay: see the rule at the top of this module.
        momentum: of SGD (Nesterov), RMSprop and Muon (0.95 is usual for it); the first beta of
            Adam, AdamW and NAdam. Adagrad, Adadelta and L-BFGS have none.
        batch_size: images of one update, for the rule of the weight decay.
        fused: torch's fused kernel, or its lists of tensors; left open, what `_Asked.fused` takes.
            Optimizers that have no such choice do not look at it.
        settings: further settings of the torch optimizer, such as `betas`, `eps` or `nesterov`.

    Raises:
        UsageError: an unknown name or setting, or a number that cannot be.
    """
    check_name(name)
    for what, value, low in (
        ("learning_rate", learning_rate, 0.0),
        ("weight_decay", weight_decay, 0.0),
        ("momentum", momentum, 0.0),
    ):
        if not (math.isfinite(value) and value >= low) or (what == "learning_rate" and value == 0):
            raise UsageError(f"{what} = {value}: give a positive number")
    if momentum >= 1.0:
        raise UsageError(f"momentum = {momentum}: give a number below 1")
    given = _groups_of(groups) if isinstance(groups, nn.Module) else tuple(groups)
    if not any(group.parameters for group in given):
        raise UsageError("the model has no parameters to train")
    shrink = weight_decay * REFERENCE_LEARNING_RATE[name] * batch_size / _REFERENCE_BATCH_SIZE
    optimizer = OPTIMIZERS[name](_Asked(given, learning_rate, shrink, momentum, settings, fused))
    for group in optimizer.param_groups:
        group["base_learning_rate"] = group["lr"]
    return optimizer


def check_name(name: str) -> None:
    """Raises UsageError for an optimizer that does not exist."""
    if name not in OPTIMIZERS:
        raise UsageError(f"there is no optimizer '{name}'", fix=nearest(name, OPTIMIZERS))


# `make` has an argument of that name.
_groups_of = groups


@dataclass(frozen=True, slots=True)
class _Asked:
    groups: tuple[Group, ...]
    learning_rate: float
    # Share of a weight that goes in one step at the peak, without momentum.
    shrink: float
    momentum: float
    settings: Mapping[str, Any]
    wants_fused: bool | None = None

    def torch_groups(self, *, weight_decay: float) -> list[dict[str, Any]]:
        """Groups as torch takes them; `weight_decay` is multiplied by the learning rate there."""
        return [
            {
                "params": list(group.parameters),
                "name": group.name,
                "lr": self.learning_rate * group.scale,
                "weight_decay": weight_decay if group.decays else 0.0,
            }
            for group in self.groups
            if group.parameters
        ]

    @property
    def decoupled(self) -> list[dict[str, Any]]:
        return self.torch_groups(weight_decay=self.shrink / self.learning_rate)

    def fused(self, kinds: set[str]) -> dict[str, bool]:
        """{"fused": True} where torch's fused kernel is there and pays, else its own choice.

        On the processor it halves the time of a step or better (ResNet-18's filters with SGD: 13 to
        6 ms), but copies weights that do not lie in memory in the order of their indices (9 to
        15 ms in channels_last format).
        """
        if self.settings.get("foreach"):
            return {}
        parameters = [parameter for group in self.groups for parameter in group.parameters]
        able = all(p.is_floating_point() and p.device.type in kinds for p in parameters)
        if self.wants_fused is not None:
            return {"fused": True} if able and self.wants_fused else {"foreach": True}
        in_order = all(p.is_contiguous() for p in parameters if p.device.type == "cpu")
        return {"fused": True} if able and in_order else {}

    def known(self, optimizer: type[torch.optim.Optimizer], **defaults: Any) -> dict[str, Any]:
        """The settings on top of our defaults; those that `optimizer` does not have are refused."""
        names = set(inspect.signature(optimizer).parameters) - {"params", "lr", "weight_decay"}
        for setting in self.settings:
            if setting not in names:
                raise UsageError(
                    f"{optimizer.__name__} has no setting '{setting}'", fix=nearest(setting, names)
                )
        return {**defaults, **self.settings}


def _sgd(asked: _Asked) -> torch.optim.Optimizer:
    # torch adds the decay to the gradient, so momentum multiplies it by 1 / (1 - momentum), which
    # is taken out here and put in for the reference momentum.
    share = (1.0 - asked.momentum) / (1.0 - _REFERENCE_MOMENTUM)
    groups = asked.torch_groups(weight_decay=share * asked.shrink / asked.learning_rate)
    settings = asked.known(
        torch.optim.SGD,
        momentum=asked.momentum,
        nesterov=asked.momentum > 0.0,
        **asked.fused({"cpu", "cuda", "mps", "xpu"}),
    )
    return torch.optim.SGD(groups, lr=asked.learning_rate, **settings)


def _adam(asked: _Asked) -> torch.optim.Optimizer:
    settings = asked.known(
        torch.optim.Adam,
        betas=(asked.momentum, 0.999),
        decoupled_weight_decay=True,
        **asked.fused({"cpu", "cuda", "mps", "xpu"}),
    )
    return torch.optim.Adam(asked.decoupled, lr=asked.learning_rate, **settings)


def _adamw(asked: _Asked) -> torch.optim.Optimizer:
    settings = asked.known(
        torch.optim.AdamW,
        betas=(asked.momentum, 0.999),
        **asked.fused({"cpu", "cuda", "mps", "xpu"}),
    )
    return torch.optim.AdamW(asked.decoupled, lr=asked.learning_rate, **settings)


def _nadam(asked: _Asked) -> torch.optim.Optimizer:
    settings = asked.known(
        torch.optim.NAdam, betas=(asked.momentum, 0.999), decoupled_weight_decay=True
    )
    return torch.optim.NAdam(asked.decoupled, lr=asked.learning_rate, **settings)


def _rmsprop(asked: _Asked) -> torch.optim.Optimizer:
    settings = asked.known(torch.optim.RMSprop, momentum=asked.momentum)
    return _shrinking(torch.optim.RMSprop, asked, settings)


def _adagrad(asked: _Asked) -> torch.optim.Optimizer:
    settings = asked.known(torch.optim.Adagrad, **asked.fused({"cpu", "cuda"}))
    return _shrinking(torch.optim.Adagrad, asked, settings)


def _adadelta(asked: _Asked) -> torch.optim.Optimizer:
    return _shrinking(torch.optim.Adadelta, asked, asked.known(torch.optim.Adadelta))


def _shrinking(
    optimizer: Callable[..., torch.optim.Optimizer], asked: _Asked, settings: dict[str, Any]
) -> torch.optim.Optimizer:
    """Decoupled decay for the optimizers whose torch version only knows an L2 penalty."""
    groups = asked.torch_groups(weight_decay=0.0)
    for group, source in zip(groups, (g for g in asked.groups if g.parameters), strict=True):
        group["decoupled_decay"] = asked.shrink / asked.learning_rate if source.decays else 0.0
    made = optimizer(groups, lr=asked.learning_rate, **settings)
    made.register_step_pre_hook(_shrink)
    return made


@torch.no_grad()
def _shrink(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG001 - torch's signature
    for group in optimizer.param_groups:
        weights = [parameter for parameter in group["params"] if parameter.grad is not None]
        if weights and group["decoupled_decay"]:
            torch._foreach_mul_(weights, 1.0 - group["lr"] * group["decoupled_decay"])


def _lbfgs(asked: _Asked) -> torch.optim.Optimizer:
    if asked.shrink:
        raise UsageError(
            "L-BFGS minimises the loss as it is, so weight_decay has to be part of the loss",
            fix="give weight_decay = 0 and add the penalty in the closure",
        )
    if any(group.scale != 1.0 for group in asked.groups):
        raise UsageError("L-BFGS takes one learning rate for all: no layer decay")
    settings = asked.known(
        torch.optim.LBFGS, max_iter=20, history_size=10, line_search_fn="strong_wolfe"
    )
    parameters = itertools.chain.from_iterable(group.parameters for group in asked.groups)
    return torch.optim.LBFGS(list(parameters), lr=asked.learning_rate, **settings)


def _muon(asked: _Asked) -> torch.optim.Optimizer:
    settings = asked.known(Muon, momentum=asked.momentum)
    groups = asked.decoupled
    for group, source in zip(groups, (g for g in asked.groups if g.parameters), strict=True):
        group["orthogonal"] = source.hidden
    return Muon(groups, lr=asked.learning_rate, **settings)


def _muon_hyperball(asked: _Asked) -> torch.optim.Optimizer:
    settings = asked.known(Muon, momentum=asked.momentum, on_sphere=True, steps=_TURNING_STEPS)
    groups = asked.torch_groups(weight_decay=asked.shrink / (_REST_SHARE * asked.learning_rate))
    for group, source in zip(groups, (g for g in asked.groups if g.parameters), strict=True):
        group["orthogonal"] = source.hidden
        if not source.hidden:
            group["lr"] *= _REST_SHARE
    return Muon(groups, lr=asked.learning_rate, **settings)


# An update's length is set afterwards, so that it need not be quite orthogonal: five steps learn
# no more, and are 4 % of the time of a wide network (docs/measurements.md).
_TURNING_STEPS = 3
# Of the rate at which filters turn, what norms, biases and the head learn at with AdamW;
# docs/measurements.md.
_REST_SHARE = 0.1


def _sgd_schedule_free(asked: _Asked) -> torch.optim.Optimizer:
    package = _schedule_free_package()
    _check_averaging(asked)
    settings = asked.known(package.SGDScheduleFree, momentum=asked.momentum)
    return _begun(package.SGDScheduleFree(asked.decoupled, lr=asked.learning_rate, **settings))


def _adamw_schedule_free(asked: _Asked) -> torch.optim.Optimizer:
    package = _schedule_free_package()
    _check_averaging(asked)
    settings = asked.known(package.AdamWScheduleFree, betas=(asked.momentum, 0.999))
    return _begun(package.AdamWScheduleFree(asked.decoupled, lr=asked.learning_rate, **settings))


def _check_averaging(asked: _Asked) -> None:
    if asked.momentum == 0.0:
        raise UsageError(
            "momentum = 0: without a schedule it is the share of the average in the weights that "
            "gradients are taken at",
            fix="give a number above 0, such as 0.9",
        )


def _schedule_free_package() -> Any:
    try:
        import schedulefree  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise MissingExtra(
            "optimizers without a schedule need a package that is not installed: schedulefree",
            fix='pip install "vidi[schedulefree]"',
        ) from None
    return schedulefree


def _begun(optimizer: Any) -> torch.optim.Optimizer:
    """Its weights are for training and stay so; `Average.follow` computes the others beside them.

    Its own switch between the two rounds each time: a run that saves once more would end with
    other weights.
    """
    optimizer.train()
    return optimizer  # type: ignore[no-any-return]


# Those that torch has a fused kernel for.
FUSED: Final = ("sgd", "adam", "adamw", "adagrad")
OPTIMIZERS: Final[Mapping[str, Callable[[_Asked], torch.optim.Optimizer]]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "nadam": _nadam,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
    "adadelta": _adadelta,
    "muon": _muon,
    "muon_hyperball": _muon_hyperball,
    "lbfgs": _lbfgs,
    "sgd_schedule_free": _sgd_schedule_free,
    "adamw_schedule_free": _adamw_schedule_free,
}


@final
class Muon(torch.optim.Optimizer):
    """Muon for matrices and convolution filters, AdamW for the rest, in one optimizer.

    torch's own Muon takes matrices only. This one takes a filter (O, I, H, W) as the matrix
    (O, I * H * W), does equal shapes together in one batch of matrix products, and updates the
    groups whose "orthogonal" is false with AdamW, so that one checkpoint holds all of it. On
    matrices it equals torch.optim.Muon with adjust_lr_fn="match_rms_adamw", whose learning rates
    are AdamW's. Jordan et al. 2024; Liu et al. 2025, "Muon is Scalable for LLM Training".

    Args:
        on_sphere: a matrix keeps the norm it came with, and an update is as long as the learning
            rate says in parts of it; weight decay has nothing to do there. Before a norm, where
            only the direction of a filter counts, the rate is then how far that turns in a step,
            whatever the weights have grown to. Jordan 2024 (airbench94); Wen et al. 2025,
            "Hyperball optimization".
    """

    # The quintic of Jordan et al.: steep at zero, so that five steps are enough.
    _A, _B, _C = 3.4445, -4.7750, 2.0315

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.95,
        steps: int = 5,
        on_sphere: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "steps": steps,
            "on_sphere": on_sphere,
            "betas": betas,
            "eps": eps,
            "weight_decay": 0.0,
            "orthogonal": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            gradients = [parameter.grad for parameter in parameters]
            if parameters and group["orthogonal"]:
                self._step_matrices(group, parameters, gradients)
            elif parameters:
                self._step_others(group, parameters, gradients)
        return loss

    def _step_matrices(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        buffers = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffers.append(state["momentum_buffer"])
        torch._foreach_lerp_(buffers, gradients, 1.0 - group["momentum"])
        updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
        orthogonal = self._orthogonalised(list(updates), group["steps"])
        if group["on_sphere"]:
            # Without a step a norm would still be rounded.
            if float(group["lr"]) > 0.0:
                self._turn(parameters, orthogonal, float(group["lr"]))
            return
        torch._foreach_mul_(parameters, 1.0 - float(group["lr"]) * group["weight_decay"])
        for parameter, update in zip(parameters, orthogonal, strict=True):
            rows = parameter.shape[0]
            longest = max(rows, parameter.numel() // rows)
            parameter.add_(update, alpha=-float(group["lr"]) * 0.2 * math.sqrt(longest))

    @staticmethod
    def _turn(parameters: list[Tensor], updates: list[Tensor], rate: float) -> None:
        """Each parameter moves by `rate` times its norm, and gets that norm back."""
        # Zeros have no direction yet: as long as orthonormal rows would be.
        norms = [
            torch.where(norm > 0, norm, math.sqrt(parameter.shape[0]))
            for norm, parameter in zip(torch._foreach_norm(parameters), parameters, strict=True)
        ]
        lengths = torch._foreach_norm(updates)
        # Without a gradient there is nowhere to go.
        torch._foreach_clamp_min_(lengths, 1e-12)
        scales = torch._foreach_div(norms, lengths)
        torch._foreach_mul_(scales, -rate)
        torch._foreach_mul_(updates, scales)
        torch._foreach_add_(parameters, updates)
        torch._foreach_mul_(parameters, torch._foreach_div(norms, torch._foreach_norm(parameters)))

    @classmethod
    def _orthogonalised(cls, filters: list[Tensor], steps: int) -> list[Tensor]:
        """Of the same shapes, as matrices with singular values near 1; equal shapes together."""
        by_shape: dict[torch.Size, list[int]] = {}
        for index, each in enumerate(filters):
            by_shape.setdefault(each.shape, []).append(index)
        made = list(filters)
        for shape, indices in by_shape.items():
            matrices = torch.stack([filters[index].flatten(1) for index in indices])
            for index, matrix in zip(indices, cls._newton_schulz(matrices, steps), strict=True):
                made[index] = matrix.view(shape)
        return made

    @classmethod
    def _newton_schulz(cls, matrices: Tensor, steps: int) -> Tensor:
        """(K, M, N) -> the same, each with singular values near 1."""
        tall = matrices.shape[1] > matrices.shape[2]
        x = matrices.bfloat16()
        if tall:
            x = x.mT
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
        for _ in range(steps):
            gram = x @ x.mT
            polynomial = torch.baddbmm(gram, gram, gram, beta=cls._B, alpha=cls._C)
            x = torch.baddbmm(x, polynomial, x, beta=cls._A)
        return (x.mT if tall else x).to(matrices.dtype)

    def _step_others(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        first, second, steps = [], [], []
        for parameter in parameters:
            state = self.state[parameter]
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            first.append(state["exp_avg"])
            second.append(state["exp_avg_sq"])
            steps.append(state["step"])
        adamw(
            parameters,
            gradients,
            first,
            second,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def set_learning_rate(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    """Each group's learning rate becomes `multiplier` times its own base rate."""
    for group in optimizer.param_groups:
        rate = group["base_learning_rate"] * multiplier
        if isinstance(group["lr"], Tensor):
            # CUDA graphs hold on to the tensor.
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


@final
class Average:
    """Exponential moving average of a model's weights and statistics (Polyak and Juditsky 1992).

    `average.model` is a model of its own, in evaluation mode: evaluating it needs no swapping of
    weights, so nothing can be saved while they are swapped. Early averages are short: the decay of
    step n is min(decay, (1 + n) / (10 + n)), so that the random start is forgotten.

    An update from a model that holds a NaN or an infinity anywhere is not made.

    Args:
        model: what is averaged; it is copied.
        decay: share of the average that stays in one step, in [0, 1).
        uniform: all steps count alike instead, as stochastic weight averaging has it (Izmailov et
            al. 2018).
    """

    def __init__(self, model: nn.Module, decay: float = 0.0, *, uniform: bool = False) -> None:
        if not 0.0 <= decay < 1.0:
            raise UsageError(f"decay = {decay}: an average takes a number from 0 to below 1")
        self.decay = decay
        self.uniform = uniform
        self.num_steps = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        # The model averaged last and its tensors beside ours; looking them up takes longer than
        # averaging those of a small model.
        self._of: nn.Module | None = None
        self._known: tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]] = ([], [], [])

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int = 1) -> bool:
        """Move towards `model`. False when it was not finite (told on the processor only).

        On an accelerator the test stays on the device, so the update needs no synchronisation; it
        then counts in `num_steps` although it moved nothing.

        Args:
            steps: how many steps the model made since the last update. Looking at every fourth
                step, and letting what is old shrink four times, averages as long for a quarter of
                the time.
        """
        averages, values, copies = self._pairs(model)
        finite = all_finite(values)
        if is_sharded(model):
            finite = in_all(finite)
        on_host = finite.device.type == "cpu"
        if on_host and not finite:
            return False
        self.num_steps += steps
        if self.uniform:
            weight = steps / self.num_steps
        else:
            last = self.num_steps - 1
            weight = 1.0 - min(self.decay, (1.0 + last) / (10.0 + last)) ** steps
        if on_host:
            torch._foreach_lerp_(averages, values, weight)
        else:
            moved = torch._foreach_lerp(averages, values, weight)
            for average, new in zip(averages, moved, strict=True):
                torch.where(finite, new, average, out=average)
        for average, value in copies:
            average.copy_(value)
        return True

    def _pairs(
        self, model: nn.Module
    ) -> tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]:
        """Floating tensors to average, and (average, value) of those that are copied: counters.

        A model's tensors stay the same objects while it trains: they are changed in place.
        """
        if self._of is model:
            return self._known
        averages, values, copies = [], [], []
        ours = self.model.state_dict(keep_vars=True)
        theirs = model.state_dict(keep_vars=True)
        for name, average in ours.items():
            value = theirs[name]
            if average.is_floating_point():
                averages.append(local(average))
                values.append(local(value.detach()))
            else:
                copies.append((average, value))
        self._of, self._known = model, (averages, values, copies)
        return self._known

    @torch.no_grad()
    def follow(self, model: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int) -> None:
        """Become the average that a schedule-free optimizer holds; its weights stay as they are.

        The model's weights y lie between that average x and the optimizer's own z: y = (1 - beta) z
        + beta x (Defazio et al. 2024, "The Road Less Scheduled"). Statistics of batch norms stay
        as they are here; see `measure_statistics`.
        """
        found: dict[int, tuple[Tensor, float]] = {}
        for group in optimizer.param_groups:
            beta = group["betas"][0] if "betas" in group else group["momentum"]
            for parameter in group["params"]:
                own = optimizer.state.get(parameter, {}).get("z")
                if own is not None:
                    found[id(parameter)] = (own, beta)
        theirs = dict(model.named_parameters())
        for name, average in self.model.named_parameters():
            value = theirs[name].detach()
            average.copy_(value)
            if id(theirs[name]) in found:
                own, beta = found[id(theirs[name])]
                average.lerp_(own, 1.0 - 1.0 / beta)
        self.num_steps = num_steps

    @torch.no_grad()
    def reset(self, model: nn.Module) -> None:
        """Start again from `model`, as after a rollback."""
        self.model.load_state_dict(model.state_dict())
        self.num_steps = 0

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged tensors under the model's names; `num_steps` is kept by the caller."""
        return dict(self.model.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor], *, num_steps: int) -> None:
        """What `state_dict` gave, and the count that went with it."""
        self.model.load_state_dict(state)
        self.num_steps = num_steps


@torch.no_grad()
def measure_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Batch norms that learn take the mean and variance of these images, all batches alike.

    For weights that no training step has seen, such as an average's. In training mode meanwhile.
    """
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    was_training = model.training
    model.train()
    try:
        for norm in norms:
            if norm.training:
                norm.reset_running_stats()
                norm.momentum = None
        for images in batches:
            model(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(was_training)


@contextlib.contextmanager
def averaged(model: nn.Module, average: Average | None) -> Iterator[nn.Module]:
    """What to evaluate: the average where there is one, else `model` in evaluation mode."""
    if average is not None:
        yield average.model
        return
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)
