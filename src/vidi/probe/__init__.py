"""Measures what no rule of thumb predicts: this model, on these images, on this machine."""

from vidi.probe.machine import keep_memory, machine
from vidi.probe.speed import measure

__all__ = ["keep_memory", "machine", "measure"]
