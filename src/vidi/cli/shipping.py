"""Commands that ship: export, predict, serve."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidi.cli.options import (
    AbstainBelow,
    AsJson,
    Calibrated,
    DataNow,
    OwnModel,
    Precision,
    RunDirectory,
    Trusted,
    Tta,
    answer_of,
    loaded_model,
)
from vidi.cli.printing import print_json, printable

if TYPE_CHECKING:
    from vidi.predict import Row
    from vidi.predictor import Predictor


def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE_OR_RUN",
            help="What `vidi export`, `train`, `tune` or `fit` wrote.",
            show_default=False,
            callback=answer_of,
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS...",
            help="Image files, folders of them, globs; - reads names from standard input.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="A .csv, .jsonl or .parquet file.", show_default=False
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="csv, jsonl or parquet.", show_default=False),
    ] = None,
    own_model: OwnModel = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes of each image.")] = 1,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Of all classes.")] = False,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="What the last layer sees, as numbers.")
    ] = False,
    abstain_below: AbstainBelow = None,
    precision: Precision = None,
    tta: Tta = False,
    calibrated: Calibrated = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out after what is there.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", min=1, help="That decode.  [default: one a core]", show_default=False
        ),
    ] = None,
    trusted: Trusted = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Say what is on images: one row for each file, in order.

    A file that cannot be read has a row that says why, and the exit code is then 3.
    """
    from vidi.malloc import keep_memory
    from vidi.predict import Counts, columns_of, format_of, rows_of, write_rows
    from vidi.predictor import load

    keep_memory(block_bytes=32 << 20)
    predictor = load(
        model, model=loaded_model(own_model), calibrated=calibrated, trusted=trusted, tta=tta
    )
    predictor = _abstaining(predictor, abstain_below, precision)
    for note in predictor.notes:
        typer.echo(f"note: {note}", err=True)
    columns = columns_of(
        predictor.classes,
        top=top,
        probabilities=probabilities,
        num_features=predictor.num_features if embeddings else 0,
    )
    listed = _listed() if "-" in images else ()
    named = [path for path in images if path != "-"]
    if out is None and form is None and not as_json and not (probabilities or embeddings):
        counts = Counts()
        for row in rows_of(predictor, named, columns, counts, listed=listed, threads=threads):
            _print_row(row)
    else:
        written = format_of(out, "jsonl" if as_json and form is None and out is None else form)
        with _predicting(named if not listed else None) as show:
            counts = write_rows(
                predictor,
                named,
                out if out is not None else sys.stdout,
                written,
                columns,
                listed=listed,
                resume=resume,
                threads=threads,
                show=show,
            )
    if counts.bad:
        typer.echo(f"{counts.bad:,} files could not be predicted", err=True)
        raise typer.Exit(3)


def export(
    run: RunDirectory,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="TARGET", help="onnx, torch (torch.export), or onnx-int8 (8 bits)."
        ),
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where the bundle goes.  [default: inside the run]",
            show_default=False,
        ),
    ] = None,
    data: DataNow = None,
    model: OwnModel = None,
    as_json: AsJson = False,
) -> None:
    """Write a bundle that needs no training code, and prove that it says the same.

    Validation files go from their bytes to a label through training's code and through the
    bundle. Outside the tolerance nothing is written, and the file is named.
    """
    from vidi import export as make_bundle
    from vidi.show import display

    with display(quiet=as_json) as show:
        bundle = make_bundle(run, to=to, out=out, data=data, model=loaded_model(model), show=show)
    about = bundle.about
    if as_json:
        print_json({"bundle": str(bundle.path)} | about.model_dump(mode="json"))
        return
    parity = about.parity
    typer.echo(
        f"{parity.n:,} {parity.split} files from bytes to label: {parity.label_agreement:.1%} the "
        f"same label, probabilities within {parity.largest_difference:.1g}, accuracy "
        f"{parity.accuracy_trained:.2%} trained and {parity.accuracy_bundle:.2%} shipped"
    )
    typer.echo(f"bundle:  {bundle.path}  ({sum(f.num_bytes for f in about.files) / 1e6:.1f} MB)")
    typer.echo(f"predict: vidi predict {shlex.quote(str(bundle.path))} IMAGES...")


def serve(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE",
            help="What `vidi export` wrote; a run or a study too.",
            show_default=False,
            callback=answer_of,
        ),
    ],
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Off loopback only with a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 finds a free one.")
    ] = 8000,
    unix: Annotated[
        Path | None,
        typer.Option(
            "--unix", metavar="PATH", help="A socket instead of a port.", show_default=False
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="Another name it may be called by; may be given again.",
            show_default=False,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Who asks must know what is in it; or in the variable VIDI_TOKEN.",
            show_default=False,
        ),
    ] = None,
    max_megabytes: Annotated[
        int, typer.Option("--max-megabytes", min=1, max=500, help="Of one image file.")
    ] = 32,
    abstain_below: AbstainBelow = None,
    precision: Precision = None,
    calibrated: Calibrated = False,
    trusted: Trusted = False,
    own_model: OwnModel = None,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="One line a request on standard error.")
    ] = False,
) -> None:
    """Answer over HTTP, with a page to drop images on; closed to other machines and sites."""
    from vidi.predictor import load
    from vidi.serve import Limits, Place
    from vidi.serve import serve as answer

    predictor = load(model, model=loaded_model(own_model), calibrated=calibrated, trusted=trusted)
    answer(
        _abstaining(predictor, abstain_below, precision),
        Place(
            host=host,
            port=port,
            unix=unix,
            allowed_hosts=tuple(allow_host or ()),
            token_file=token_file,
        ),
        Limits(body_bytes=max_megabytes << 20),
        access_log=access_log,
        say=lambda line: typer.echo(line, err=True),
    )


def _abstaining(
    predictor: Predictor, abstain_below: float | None, precision: float | None
) -> Predictor:
    from vidi.errors import UsageError

    if precision is not None and abstain_below is not None:
        raise UsageError("--precision finds the threshold that --abstain-below would set")
    if precision is not None:
        abstain_below = predictor.threshold_for(precision)
    if abstain_below is None:
        return predictor
    return predictor.configured(
        calibrated=predictor.calibrated,
        tta=predictor.views != "plain",
        abstain_below=abstain_below,
    )


def _listed() -> Iterator[str]:
    """The lines of standard input; names are bytes to the system, and stay what they are."""
    for line in sys.stdin.buffer:
        yield os.fsdecode(line)


def _predicting(paths: list[str] | None) -> contextlib.AbstractContextManager[Any]:
    from vidi.show import predicting

    return predicting(paths)


def _print_row(row: Row) -> None:
    if row.reason:
        typer.echo(f"{printable(row.file)}: {row.reason}: {printable(row.message)}", err=True)
        return
    ranked = "  ".join(f"{printable(label)} {share:.1%}" for label, share in row.top)
    unsure = "  (abstains)" if row.abstained else ""
    typer.echo(f"{printable(row.file)}: {ranked}{unsure}")
