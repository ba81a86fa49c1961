"""A bundle over HTTP: one image in, JSON out; closed unless it is opened. See SECURITY.md."""

from __future__ import annotations

from vidi.serve.limits import Limits
from vidi.serve.server import Place, serve

__all__ = ["Limits", "Place", "serve"]
