"""Views -> one self-contained HTML file.

The page runs only the scripts whose hashes stand in its Content-Security-Policy, which are the ones
of this package; what comes from data is JSON inside `<script type="application/json">`, which a
browser does not run, and reaches the page as text nodes alone. There is no request to anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import jinja2
from markupsafe import Markup


class Section(NamedTuple):
    """One part of a page: where it stands, and what is said above it."""

    name: str
    short: str
    heading: str
    lede: str


class Kind(NamedTuple):
    """A sort of page: its sections after the summary, and its scripts.

    The modules stand in the order in which they need one another; each is a plain ES module, served
    as it is by a live page and joined into one here.
    """

    sections: tuple[Section, ...]
    modules: tuple[str, ...]
    charts: bool


_SHARED: Final = ("format.js", "dom.js", "theme.js", "start.js")
MODULES: Final = (
    *_SHARED,
    "chart.js",
    "table.js",
    "pictures.js",
    "first.js",
    "summary.js",
    "suspects.js",
    "map.js",
    "confusion.js",
    "classes.js",
    "trust.js",
    "curves.js",
    "plan.js",
    "data.js",
    "environment.js",
    "main.js",
)
RUN: Final = Kind(
    (
        Section(
            "mistakes",
            "Mistakes",
            "The worst mistakes",
            "Wrong, and sure of it. What is wrong here is sometimes the label.",
        ),
        Section(
            "confusion",
            "Mix-ups",
            "What is taken for what",
            "Rows are the labels, columns the answers. Choose a cell to see its pictures.",
        ),
        Section(
            "classes",
            "Classes",
            "Class by class",
            "Sort by any column. Bars span the 95% interval of what is found.",
        ),
        Section(
            "trust",
            "Trust",
            "Can the probabilities be believed?",
            "An answer given with 80% should be right in 80 of 100 cases.",
        ),
        Section(
            "suspects",
            "Labels",
            "Labels in doubt",
            "Judged by a model that was not trained on these images.",
        ),
        Section(
            "map",
            "Map",
            "What it finds alike",
            "Every judged image beside those that look alike to the model.",
        ),
        Section(
            "curves",
            "Training",
            "How it learnt",
            "Every evaluation and every logged step of the run.",
        ),
        Section(
            "plan",
            "Plan",
            "What was decided, and why",
            "Every number of the run that was not asked for has its reason.",
        ),
        Section(
            "data",
            "Data",
            "The images",
            "Everything that was found, and what became of it.",
        ),
        Section(
            "environment",
            "Machine",
            "Where it ran",
            "What it takes to get the same numbers again.",
        ),
    ),
    MODULES,
    charts=True,
)
AUDIT: Final = Kind(
    (
        Section(
            "findings",
            "Findings",
            "What was found",
            "The worst first. Every image was looked at; none was changed.",
        ),
        Section(
            "data",
            "Images",
            "The images",
            "Every file is used, left out or ignored.",
        ),
    ),
    (*_SHARED, "table.js", "data.js", "audit.js"),
    charts=False,
)
COMPARISON: Final = Kind(
    (
        Section(
            "pairs",
            "Runs",
            "Better, worse, or cannot tell",
            "Image by image, by the exact McNemar test; bars span the 95% interval.",
        ),
    ),
    (*_SHARED, "table.js", "comparison.js"),
    charts=False,
)
STUDY: Final = Kind(
    (
        Section(
            "effects",
            "Effects",
            "What each change does",
            "One change at a time, the same seeds for all. Right of the line is better.",
        ),
        Section(
            "curves",
            "Curves",
            "How the trials learnt",
            "Every validation of every trial. Choose one to see it, or use the arrow keys.",
        ),
        Section(
            "parallel",
            "Settings",
            "All settings at once",
            "A line is a trial; it meets each axis at its value. The best tenth stands out.",
        ),
        Section(
            "slices",
            "Slices",
            "Setting by setting",
            "Accuracy against each setting. The others differ too, so a cloud is not an effect.",
        ),
        Section(
            "importance",
            "Importance",
            "Which setting mattered",
            "What part of the differences each accounts for by itself, within what was tried.",
        ),
        Section(
            "rungs",
            "Rungs",
            "Who was stopped when",
            "At each rung the trials are compared; the better ones go on from where they are.",
        ),
        Section(
            "best",
            "Best",
            "The best settings",
            "Ready for vidi train --config.",
        ),
        Section(
            "time",
            "Time",
            "Where the time went",
            "Seconds of training, and everything that happened with its reason.",
        ),
        Section(
            "trials",
            "Trials",
            "Every trial",
            "Sort by any column.",
        ),
    ),
    (
        *_SHARED,
        "chart.js",
        "table.js",
        "first.js",
        "lines.js",
        "parallel.js",
        "slices.js",
        "importance.js",
        "effects.js",
        "study.js",
    ),
    charts=False,
)
_ASSETS: Final = importlib.resources.files("vidi.report") / "assets"
_UPLOT: Final = importlib.resources.files("vidi.report") / "vendor" / "uplot"

_IMPORT: Final = re.compile(r'^import \{[^}]*\} from "\./[a-z]+\.js";\n', re.MULTILINE)
_EXPORT: Final = re.compile(r"^export (?=(?:async )?(?:function|const|class) )", re.MULTILINE)
_LEFT_OVER: Final = re.compile(r"^(?:import|export)\b.*$", re.MULTILINE)


def script(modules: Iterable[str] = MODULES) -> str:
    """Some modules as one, without their imports and exports."""
    parts = []
    for name in modules:
        source = (_ASSETS / name).read_text(encoding="utf-8")
        plain = _EXPORT.sub("", _IMPORT.sub("", source))
        left = _LEFT_OVER.search(plain)
        assert left is None, f"{name}: {left and left.group()}: write it on one line, by name"
        parts.append(f"// {name}\n{plain}")
    return "\n".join(parts)


def charts() -> str:
    """uPlot, as published."""
    return (_UPLOT / "uPlot.iife.min.js").read_text(encoding="utf-8")


def style() -> str:
    """uPlot's rules and ours."""
    return (_UPLOT / "uPlot.min.css").read_text(encoding="utf-8") + (
        _ASSETS / "page.css"
    ).read_text(encoding="utf-8")


def assemble(views: Mapping[str, Mapping[str, Any]], *, title: str, kind: Kind = RUN) -> str:
    """The whole file. `title` is shown as text, like everything in `views`."""
    scripts, styles = [charts() if kind.charts else "", script(kind.modules)], style()
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"script-src {' '.join(_hashed(text) for text in scripts if text)}",
            f"style-src {_hashed(styles)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (_ASSETS / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        title=_showable(title),
        policy=policy,
        style=Markup(styles),
        charts=Markup(scripts[0]),
        script=Markup(scripts[1]),
        sections=[section for section in kind.sections if section.name in views],
        views={name: Markup(_json(view)) for name, view in views.items()},
    )


def _hashed(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _json(value: object) -> str:
    """JSON in ASCII that can stand inside a script element: nothing in it can end that element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _showable(text: str) -> str:
    """A file name may hold bytes that are not UTF-8; they are shown as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
