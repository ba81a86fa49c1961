"""The description of the interface, by the OpenAPI 3.1 standard."""

from __future__ import annotations

from typing import Any

from vidi import __version__

_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}}


def described(classes: tuple[str, ...], *, heat: bool, token: bool) -> dict[str, Any]:
    """A JSON document."""
    ranked = {
        "type": "object",
        "properties": {
            "label": {"type": "string"},
            "probability": {"type": "number", "minimum": 0, "maximum": 1},
        },
    }
    parameters = [
        {
            "name": "top",
            "in": "query",
            "description": "How many classes the answer names.",
            "schema": {"type": "integer", "minimum": 1, "maximum": len(classes), "default": 5},
        }
    ]
    if heat:
        parameters.append(
            {
                "name": "heat",
                "in": "query",
                "description": "Also where the first class was seen (Grad-CAM).",
                "schema": {"type": "boolean", "default": False},
            }
        )
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "vidi", "version": __version__},
        "paths": {
            "/predict": {
                "post": {
                    "summary": "What is on one image.",
                    "parameters": parameters,
                    "requestBody": {
                        "required": True,
                        "content": {
                            kind: {"schema": {"type": "string", "format": "binary"}}
                            for kind in ("image/*", "application/octet-stream")
                        },
                    },
                    "responses": {
                        "200": {
                            "description": "What the model says.",
                            "content": {
                                "application/json": {
                                    "schema": {
                                        "type": "object",
                                        "properties": {
                                            "label": {"type": "string", "enum": list(classes)},
                                            "probability": {"type": "number"},
                                            "abstained": {"type": "boolean"},
                                            "top": {"type": "array", "items": ranked},
                                        },
                                    }
                                }
                            },
                        },
                    }
                    | {
                        str(status): {
                            "description": words,
                            "content": {"application/json": {"schema": _ERROR}},
                        }
                        for status, words in _STATUSES.items()
                    },
                }
            },
            "/healthz": {"get": {"summary": "The process lives.", "responses": _FINE}},
            "/readyz": {"get": {"summary": "It takes requests.", "responses": _FINE}},
            "/metrics": {"get": {"summary": "Counts, for Prometheus.", "responses": _FINE}},
        },
    }
    if token:
        document["components"] = {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}
        }
        document["security"] = [{"token": []}]
    return document


_FINE = {"200": {"description": "Yes."}}
_STATUSES = {
    400: "The request is malformed.",
    401: "The token is missing or wrong.",
    403: "Asked by another site.",
    408: "The body came too slowly.",
    413: "The body is too long.",
    415: "The content type is no image's.",
    421: "The server does not go by that host.",
    422: "The image cannot be read; `reason` is a code.",
    503: "Busy or stopping; come again.",
}
