"""A run, a study or an audit -> one self-contained HTML page that opens from the file system."""

from __future__ import annotations

from pathlib import Path

from vidi.report.audit import PICTURE_PX, audit_pictures, render_audit
from vidi.report.comparison import render_comparison
from vidi.report.data import Pictures, ReportData, load
from vidi.report.page import assemble
from vidi.report.study import render_study, study_views, write_study
from vidi.report.study_data import StudyData, load_study
from vidi.report.views import views_of
from vidi.run import Run

__all__ = [
    "PICTURE_PX",
    "Pictures",
    "ReportData",
    "StudyData",
    "audit_pictures",
    "load",
    "load_study",
    "render",
    "render_audit",
    "render_comparison",
    "render_study",
    "study_views",
    "views_of",
    "write",
    "write_study",
]


def write(run: Run) -> Path:
    """Write `report.html` into the run directory and return its path.

    Raises:
        UsageError: the run has no plan yet.
        DamagedError: a file of the run cannot be read.
        StorageError: the page could not be written; an earlier one is as it was.
    """
    return run.write_report(render(load(run)))


def render(data: ReportData) -> str:
    """The page as text."""
    return assemble(views_of(data), title=f"{data.name} \u00b7 vidi")
