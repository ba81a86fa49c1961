"""3 x 3 convolutions of a training step on a processor, with a quarter of the multiplications."""

from vidi.winograd.compiled import has_winograd
from vidi.winograd.convolution import takes_any, winograd_convolutions

__all__ = ["has_winograd", "takes_any", "winograd_convolutions"]
