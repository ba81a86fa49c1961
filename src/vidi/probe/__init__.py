"""Measures what no rule of thumb predicts: this model, on these images, on this machine."""

from vidi.malloc import keep_memory
from vidi.probe.kept import keep, key_of, recalled
from vidi.probe.machine import configure, counted, machine
from vidi.probe.rate import RangeTest, picture, range_test
from vidi.probe.speed import Candidate, Feed, Space, allowance_s, measure, space

__all__ = [
    "Candidate",
    "Feed",
    "RangeTest",
    "Space",
    "allowance_s",
    "configure",
    "counted",
    "keep",
    "keep_memory",
    "key_of",
    "machine",
    "measure",
    "picture",
    "range_test",
    "recalled",
    "space",
]
