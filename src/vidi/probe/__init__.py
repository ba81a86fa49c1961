"""Measures what no rule of thumb predicts: this model, on these images, on this machine."""

from vidi.probe.machine import keep_memory, machine
from vidi.probe.speed import Candidate, candidates, measure

__all__ = ["Candidate", "candidates", "keep_memory", "machine", "measure"]
