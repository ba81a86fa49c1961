"""The page to drop images on: one file, only its own script runs, it talks to this server alone."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
from dataclasses import dataclass
from typing import Final

import jinja2
from markupsafe import Markup

from vidi.predictor import Predictor

_ASSETS: Final = importlib.resources.files("vidi.serve") / "assets"


@dataclass(frozen=True)
class Page:
    """The bytes, and the headers that they are sent with."""

    html: bytes
    headers: dict[str, str]


def page(predictor: Predictor, *, heat: bool, token: bool) -> Page:
    """For one model; its class names are data of the page, never markup."""
    script = (_ASSETS / "page.js").read_text(encoding="utf-8")
    style = (_ASSETS / "page.css").read_text(encoding="utf-8")
    about = {"classes": len(predictor.classes), "heat": heat, "token": token}
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hashed(script)}",
            f"style-src {_hashed(style)}",
            "img-src blob: data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (_ASSETS / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    html = environment.get_template("page.html").render(
        style=Markup(style), script=Markup(script), about=Markup(json.dumps(about)), token=token
    )
    headers = {
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
        "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    }
    return Page(html.encode(), headers)


def _hashed(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
