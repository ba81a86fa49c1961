"""vidi: a folder of images in, the best classifier that a time budget and a machine can buy out."""

from __future__ import annotations

__version__ = "0.1.0"
