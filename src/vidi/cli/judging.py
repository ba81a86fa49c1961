"""Commands that judge: evaluate, compare, suspects, report, show, tensorboard."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidi.cli.options import (
    AsJson,
    DataNow,
    OwnModel,
    RunDirectory,
    RunOrStudy,
    Tta,
    answer_of,
    loaded_model,
)
from vidi.cli.printing import (
    evaluation_of,
    is_chance,
    print_evaluation,
    print_json,
    printable,
)
from vidi.words import chance

if TYPE_CHECKING:
    from vidi.metrics import Comparison


def evaluate(
    run: RunDirectory,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]",
            help="Other images to judge on; the run's own test images when left out.",
            show_default=False,
        ),
    ] = None,
    model: OwnModel = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="train, validation or test.  [default: test, if there is one]"
        ),
    ] = None,
    tta: Tta = False,
    as_json: AsJson = False,
) -> None:
    """Judge a run's best weights on held-out images.

    With the precision, recall and F1 of each class, how far probabilities can be believed, and
    what is taken for what; `--json` has everything, `vidi report` draws it.
    """
    from vidi import evaluate as judge
    from vidi.show import display, evaluation_tables

    with display(quiet=as_json) as show:
        evaluation = judge(run, data, split=split, model=loaded_model(model), show=show)
        averaged = None
        if tta:
            averaged = judge(run, data, split=split, model=loaded_model(model), tta=True)
    if as_json and averaged is not None:
        both = {"plain": evaluation, "tta": averaged}
        print_json({name: judged.model_dump(mode="json") for name, judged in both.items()})
        return
    if as_json:
        typer.echo(evaluation.model_dump_json(indent=2))
        return
    print_evaluation(evaluation)
    if averaged is not None:
        print_evaluation(averaged, "averaged over views, ")
    evaluation_tables(evaluation)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="The first is what the others are held against."),
    ],
    split: Annotated[
        str | None, typer.Option("--split", help="test or validation.  [default: test]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Also as a page.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether one run is better than another, or that these images cannot tell.

    Image by image, by the exact McNemar test; with the number of images that it would take.
    """
    from vidi import compare as compare_runs

    found = compare_runs(*runs, split=split)
    if out is not None:
        _write_comparison(out, runs, split, found)
    if as_json:
        pairs = zip(runs[1:], found, strict=True)
        print_json(
            [
                {"a": str(runs[0]), "b": str(run), "sentence": each.sentence}
                | each.model_dump(mode="json")
                for run, each in pairs
            ]
        )
        return
    for run, each in zip(runs[1:], found, strict=True):
        typer.echo(f"{printable(str(run))} against {printable(str(runs[0]))}: {each.sentence}")


def suspects(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Runs on the same images, or studies, for their answers."
        ),
    ],
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv", metavar="FILE", help="A table of all images to correct.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="Where the data are now.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List held-out images whose label is doubtful, the most doubtful first."""
    from vidi import storage
    from vidi.run import Run
    from vidi.suspects import csv_of, doubts_of

    answers = [answer_of(run) for run in runs]
    doubts = doubts_of(*answers, data=data)
    found = doubts.images
    for answer in answers:
        evaluation = evaluation_of(Run.open(answer))
        if is_chance(evaluation):
            why = chance(evaluation.majority_accuracy)
            typer.echo(f"{printable(str(answer))} is {why}: what it doubts says little", err=True)
    if csv is not None:
        table = csv_of(doubts, csv.parent)
        storage.write_file(csv, table.encode("utf-8", "surrogateescape"))
    if as_json:
        print_json([dataclasses.asdict(each) for each in found])
        return
    for each in found if csv is None else found[:0]:
        typer.echo(
            f"{printable(each.file)}: {printable(each.label)} "
            f"{each.probability_of_label:.1%}, rather {printable(each.suggested)} "
            f"{each.probability_of_suggested:.1%}"
        )
    if csv is not None:
        where = printable(str(csv))
        typer.echo(f"{len(found):,} doubtful labels, the first rows of {where}")
        typer.echo(f"correct their column label, then: vidi train {where}")


def report(
    run: RunOrStudy,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Also where the model looked, a map of the images, and what is alike.",
        ),
    ] = False,
    data: DataNow = None,
    model: OwnModel = None,
) -> None:
    """Write the report of a run or a study again: one HTML page that opens anywhere."""
    from vidi import report as write_report
    from vidi.show import display

    with display() as show:
        page = write_report(run, explain=explain, data=data, model=loaded_model(model), show=show)
    typer.echo(str(page))


def show(
    run: RunOrStudy,
    view: Annotated[
        str | None,
        typer.Argument(
            metavar="[VIEW]",
            help="A part of the report; all names if left out.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The data that the part draws.")] = False,
) -> None:
    """Show the data of one part of the report of a run or a study."""
    from vidi.errors import UsageError, nearest
    from vidi.report import load, load_study, study_views, views_of
    from vidi.run import Run
    from vidi.show import show_value
    from vidi.study import Study

    study = Study.open(run) if Study.exists(run) else None
    views = study_views(load_study(study)) if study else views_of(load(Run.open(run)))
    if view is None:
        print_json(list(views)) if as_json else typer.echo("\n".join(views))
        return
    if view not in views:
        raise UsageError(f"the report of {run} has no part '{view}'", fix=nearest(view, views))
    if as_json:
        print_json(views[view])
    else:
        show_value(views[view])


def tensorboard(
    run: RunDirectory,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the event files go.")
    ] = Path("tensorboard"),
) -> None:
    """Write a run's curves, settings and mistakes for `tensorboard --logdir DIR`."""
    from vidi import tensorboard as write_events

    typer.echo(f"tensorboard --logdir {write_events(run, out)}")


def _write_comparison(
    out: Path, runs: list[Path], split: str | None, found: tuple[Comparison, ...]
) -> None:
    from vidi import storage
    from vidi.comparing import judged_alike
    from vidi.report import render_comparison

    chosen, evaluations = judged_alike(runs, split)
    names = [run.absolute().name for run in runs]
    page = render_comparison(names, chosen, evaluations, found)
    storage.write_file(out, page.encode("utf-8"))
