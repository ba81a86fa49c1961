"""Commands that look: at images, networks, the cache and this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidi.cli.options import AsJson, ConfigFile, Data, Settings, asked_config
from vidi.cli.printing import print_json

if TYPE_CHECKING:
    from vidi.data import CachedStore


def audit(
    data: Data,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Write a page with the images that are spoken of, and all findings as JSON, "
            "into this folder.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit with 3 when there is an error among the findings."),
    ] = False,
    config: ConfigFile = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Look at every image: unreadable, copied, leaking between splits, mislabelled, odd.

    Nothing of yours is changed. `train` does the cheap part of this by itself.
    """
    from vidi import audit as look_at
    from vidi.commands import AUDIT_PAGE
    from vidi.show import audit_tables, counting

    asked = asked_config(config, settings, model=None, epochs=None, minutes=None)
    with counting("auditing", quiet=as_json) as progress:
        found = look_at(data, asked, out=out, progress=progress)
    if as_json:
        typer.echo(found.to_json(indent=2))
    else:
        audit_tables(found)
        if out is not None:
            typer.echo(f"page: {out / AUDIT_PAGE}")
    if strict and found.severity == "error":
        raise typer.Exit(3)


def augment(
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The picture, a PNG file.")
    ] = Path("augment.png"),
    images: Annotated[
        int, typer.Option("--images", min=1, max=64, help="How many images: rows.")
    ] = 8,
    epochs: Annotated[
        int, typer.Option("--columns", min=1, max=64, help="In how many epochs: columns.")
    ] = 8,
    done: Annotated[
        float, typer.Option("--done", min=0.0, max=1.0, help="How far training has come.")
    ] = 1.0,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Draw what training does to your images, as one picture to look at.

    Each row is an image as it is stored, then what the model sees of it in several epochs.
    """
    from vidi import contact_sheet
    from vidi.show import display

    asked = asked_config(config, settings, model=None, epochs=None, minutes=None)
    with display() as show:
        path, made = contact_sheet(
            data, asked, out=out, num_images=images, columns=epochs, done=done, show=show
        )
    for name, value, reason in made.decisions():
        if name.startswith("augment."):
            typer.echo(f"{name.removeprefix('augment.')}: {value} ({reason})")
    typer.echo(f"look at: {path}")


def cache(
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Remove what was not used for --days, what is damaged, of another version, or "
            "left by an interrupted run.",
        ),
    ] = False,
    days: Annotated[float, typer.Option("--days", min=0.0, help="For --prune.")] = 30.0,
    max_gb: Annotated[
        float | None,
        typer.Option(
            "--max-gb",
            min=0.0,
            help="For --prune: then also what was not used for longest, until no more is left.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the decoded pixels that are kept between runs, and remove what is not needed.

    The cache lies in $VIDI_CACHE or the user's folder for caches, never beside your images.
    Whatever is removed is decoded again when it is needed.
    """
    from vidi import cache as look_after
    from vidi.data import cache_folder
    from vidi.show import cache_table

    stores, removed = look_after(prune=prune, unused_days=days, max_gb=max_gb)
    if as_json:
        kinds = {"stores": stores, "removed": removed}
        rows = {name: [_row(store) for store in some] for name, some in kinds.items()}
        print_json({"folder": str(cache_folder()), **rows})
        return
    if removed:
        freed = sum(store.num_bytes for store in removed)
        typer.echo(f"removed {len(removed)}, {freed / 1e9:.2f} GB")
    cache_table(cache_folder(), stores)


def _row(store: CachedStore) -> dict[str, Any]:
    return {**store._asdict(), "path": str(store.path)}


def models(
    filter: Annotated[
        str,
        typer.Argument(
            metavar="[FILTER]", help="Part of a name, or a pattern.", show_default=False
        ),
    ] = "",
    timm: Annotated[bool, typer.Option("--timm", help="List timm's models too.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the networks: size, cost, published accuracy, licence, and what is at hand."""
    from dataclasses import asdict

    from vidi import models as listed
    from vidi.show import models_table

    found = listed(filter, timm=timm)
    if as_json:
        print_json([asdict(line) for line in found])
    else:
        models_table(found)


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has, what is missing, and what to do about it."""
    from vidi import doctor as examine

    findings = examine()
    if as_json:
        typer.echo(findings.model_dump_json(indent=2))
        return
    for finding in findings.lines():
        typer.echo(finding)
