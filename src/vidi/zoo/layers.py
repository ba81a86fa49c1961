"""Layers that more than one family uses."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn


@final
class StochasticDepth(nn.Module):
    """Leaves out a residual branch for some images of a batch (Huang et al. 2016).

    In training each image's branch is dropped with `probability`, and the branches that stay are
    scaled up so that the mean stays. In evaluation it does nothing.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """branch: (N, ...) -> the same shape."""
        if not self.training or self.probability == 0.0:
            return branch
        kept = 1.0 - self.probability
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        scale = torch.empty(shape, dtype=branch.dtype, device=branch.device).bernoulli_(kept)
        # A probability of 1 drops every branch; dividing by zero would make it a NaN.
        return branch * (scale / kept if kept > 0.0 else scale)

    def extra_repr(self) -> str:
        return f"probability={self.probability:g}"
