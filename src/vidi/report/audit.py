"""An audit -> one self-contained HTML page with the images that it speaks of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from vidi.facts import SPLITS
from vidi.report.page import AUDIT, assemble
from vidi.report.views import picture
from vidi.words import relative, without_places

if TYPE_CHECKING:
    from vidi.data import Audit, Finding
    from vidi.image import Pixels

View = dict[str, Any]

# Pictures and groups of one finding, pictures of one group: a page of some megabytes at most.
_MAX_PICTURES: Final = 36
_MAX_GROUPS: Final = 24
_MAX_GROUP: Final = 4
# Headlines of the first screen.
_MAX_HEADLINES: Final = 6
PICTURE_PX: Final = 144


def audit_pictures(audit: Audit) -> Iterator[str]:
    """The names of the images that the page of an audit shows; some more than once."""
    for finding in audit.findings:
        if finding.groups:
            for group in _groups(finding):
                yield from group["names"]
        else:
            yield from finding.paths[:_MAX_PICTURES]


def render_audit(audit: Audit, pictures: Mapping[str, Pixels]) -> str:
    """The page as text. pictures: (H, W, 1 or 3) uint8 of the names in `audit_pictures`; a name
    without a picture, such as that of a damaged file, is shown as a name."""
    views = {
        "summary": _summary(audit),
        "findings": _findings(audit, pictures),
        "data": _data(audit),
    }
    return assemble(views, title=f"{audit.name} \u00b7 audit \u00b7 vidi", kind=AUDIT)


def _summary(audit: Audit) -> View:
    return {
        "name": without_places(audit.name),
        "used": audit.num_used,
        "found": audit.num_found,
        "elapsed": f"{audit.elapsed_s:.1f}",
        "formats": audit.formats,
        "worst": audit.severity,
        "headlines": [
            {"severity": each.severity, "message": without_places(each.message), "number": number}
            for number, each in enumerate(audit.findings[:_MAX_HEADLINES])
        ],
    }


def _findings(audit: Audit, pictures: Mapping[str, Pixels]) -> View:
    place = {name: number for number, name in enumerate(pictures)}
    longest = max((max(pixels.shape[:2]) for pixels in pictures.values()), default=PICTURE_PX)

    def shown(names: Iterable[str]) -> list[View]:
        return [{"name": _public(name), "picture": place.get(name)} for name in names]

    return {
        "items": [
            {
                "code": each.code,
                "severity": each.severity,
                "message": without_places(each.message),
                "count": each.count,
                "images": shown(each.paths),
                "groups": [
                    {"images": shown(group["names"]), "more": group["more"]}
                    for group in _groups(each)
                ],
                "num_groups": len(each.groups),
            }
            for each in audit.findings
        ],
        "pictures": [picture(pixels) for pixels in pictures.values()],
        "small": longest <= 64,
    }


def _public(name: str) -> str:
    return without_places(relative(name))


def _groups(finding: Finding) -> list[View]:
    return [
        {"names": group[:_MAX_GROUP], "more": max(0, len(group) - _MAX_GROUP)}
        for group in finding.groups[:_MAX_GROUPS]
    ]


def _data(audit: Audit) -> View:
    present = [split for split in SPLITS if any(audit.counts.get(split, ()))]
    return {
        "name": without_places(audit.name),
        "fingerprint": audit.fingerprint,
        "split_rule": without_places(audit.split_rule),
        "splits": present,
        "classes": list(audit.classes),
        "counts": {split: list(audit.counts[split]) for split in present},
        "height_px": _sides(audit.height_px),
        "width_px": _sides(audit.width_px),
        "grey": audit.grey,
        "quarantined": audit.quarantined,
        "ignored": audit.ignored,
        "neighbour_agreement": None,
        "found": None,
    }


def _sides(extent: tuple[int, int, int] | None) -> list[int]:
    return list(extent or (0, 0, 0))
