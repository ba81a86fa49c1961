"""Commands that train: train, fit, tune, plan, ablate."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from vidi.cli.options import (
    STARTED_AT,
    AsJson,
    ConfigFile,
    Data,
    Epochs,
    Minutes,
    Model,
    Retrain,
    Settings,
    StudyFolder,
    Workers,
    asked_config,
)
from vidi.cli.printing import evaluation_of, print_evaluation, print_json, shortly
from vidi.signals import speaks

if TYPE_CHECKING:
    from vidi.config import Config
    from vidi.study import Study


def train(
    data: Data,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where the run is kept; a stopped run there is continued.  "
            "[default: a new one in runs/]",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    epochs: Epochs = None,
    minutes: Minutes = None,
    config: ConfigFile = None,
    settings: Settings = None,
    force_resume: Annotated[
        bool,
        typer.Option("--force-resume", help="Continue although settings or data differ."),
    ] = False,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Write a trace of a few steps, for ui.perfetto.dev."),
    ] = False,
    nproc: Annotated[
        int | None,
        typer.Option(
            "--nproc",
            metavar="N",
            min=1,
            help="Train in N processes that share each batch.",
            show_default=False,
        ),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts",
            metavar="N",
            min=0,
            help="With --nproc: start all again, from the newest checkpoint, when one ends.",
        ),
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Train one classifier, judge it on held-out images, write a report.

    What you leave open is decided for you; `vidi plan` shows every decision with its reason. Give
    the same command again to continue a stopped run.
    """
    asked = asked_config(config, settings, model=model, epochs=epochs, minutes=minutes)
    from vidi import train as run_training
    from vidi.show import display

    if nproc is not None and nproc > 1:
        _launch(data, out, processes=nproc, max_restarts=max_restarts)
    with display(quiet=as_json) as show:
        run = run_training(
            data,
            asked,
            out=out,
            show=show,
            force_resume=force_resume,
            profile=profile,
            started_at=STARTED_AT,
        )
    if not speaks():
        return
    evaluation = evaluation_of(run)
    if as_json:
        print_json(
            {
                "run": str(run.path),
                "report": str(run.report_path),
                **shortly(evaluation),
                "n_leaked": evaluation.n_leaked,
                "accuracy_without_leaked": evaluation.without_leaked
                and evaluation.without_leaked.accuracy,
            }
        )
        return
    print_evaluation(evaluation)
    typer.echo(f"report:  {run.report_path}")
    typer.echo(f"predict: vidi predict {shlex.quote(str(run.path))} IMAGES...")


def fit(
    data: Data,
    minutes: Annotated[
        float, typer.Option("--minutes", metavar="M", help="Wall-clock time for everything.")
    ] = 10.0,
    out: StudyFolder = None,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="TARGET", help="What is exported: onnx, torch, none, or best of them."
        ),
    ] = "best",
    retrain: Retrain = False,
    model: Model = None,
    config: ConfigFile = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """The best classifier that so many minutes can buy: tuned, trained, judged, exported.

    An answer is there early and only gets better. Ctrl-C ends it with the best so far; a kill costs
    little, the same command goes on.
    """
    from vidi.signals import nothing_yet, watched

    # From here to the last line: a signal is obeyed where that can be done well.
    with watched() as stop:
        stop.said = nothing_yet
        asked = asked_config(config, settings, model=model, epochs=None, minutes=None)
        from vidi import fit as run_fit
        from vidi.show import display

        with display(quiet=as_json) as show:
            study = run_fit(
                data,
                asked,
                minutes=minutes,
                out=out,
                to=to,
                retrain=retrain,
                show=show,
                started_at=STARTED_AT,
            )
        _print_fit(study, as_json=as_json)


def _print_fit(study: Study, *, as_json: bool) -> None:
    from vidi import Run

    run = Run.open(study.final_path)
    evaluation = evaluation_of(run)
    bundle = next((path for path in map(run.bundle_path, ("onnx", "torch")) if path.exists()), None)
    if as_json:
        print_json(
            {
                "study": str(study.path),
                "run": str(run.path),
                "report": str(run.report_path),
                "page": str(study.report_path) if study.report_path.exists() else None,
                "bundle": bundle and str(bundle),
                "no_bundle_because": None if bundle else _why_no_bundle(study),
                "best": str(study.best_path),
                **shortly(evaluation),
            }
        )
        return
    print_evaluation(evaluation)
    typer.echo(f"report:  {run.report_path}")
    if study.report_path.exists():
        typer.echo(f"trials:  {study.report_path}")
    typer.echo(f"config:  vidi train DATA --config {shlex.quote(str(study.best_path))}")
    typer.echo(f"predict: vidi predict {shlex.quote(str(bundle or run.path))} IMAGES...")


def _why_no_bundle(study: Study) -> str:
    reasons = [event["why"] for event in study.events.read() if event["event"] == "not exported"]
    return reasons[-1] if reasons else "it was removed"


def tune(
    data: Data,
    minutes: Minutes = None,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials", metavar="N", min=1, help="How many trials to begin.", show_default=False
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            "--space",
            metavar="FILE",
            help="What to try: a table \\[space] as TOML, module:function, or full: everything "
            "that is known to matter.  [default: what is worth trying on such images]",
            show_default=False,
        ),
    ] = None,
    sampler: Annotated[
        str,
        typer.Option(
            "--sampler", metavar="NAME", help="tpe, gp, cmaes, qmc, random or grid: what is next."
        ),
    ] = "tpe",
    promotion: Annotated[
        str,
        typer.Option(
            "--promotion",
            metavar="RULE",
            help="asha, pasha, halving, median or none: which trials go on.",
        ),
    ] = "asha",
    fidelity: Annotated[
        str,
        typer.Option(
            "--fidelity",
            metavar="WHAT",
            help="What is less at the rungs: steps alone, or image_px or data_share as well.",
        ),
    ] = "steps",
    patience: Annotated[
        int,
        typer.Option(
            "--patience", metavar="N", min=0, help="End when N trials were no better; 0: never."
        ),
    ] = 0,
    retrain: Retrain = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the suggestions.")] = 0,
    workers: Workers = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help='Run the workers on a Ray cluster; "local" starts one here.',
            show_default=False,
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="URL",
            help="A database server for Optuna's dashboard, instead of a file in the study.",
            show_default=False,
        ),
    ] = None,
    timeout_s: Annotated[
        float,
        typer.Option("--timeout", metavar="S", min=1, help="End a trial that is silent so long."),
    ] = 300.0,
    out: StudyFolder = None,
    model: Model = None,
    epochs: Epochs = None,
    config: ConfigFile = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Search the settings that are best for your images, and train the answer.

    Give the same command again to continue a stopped search. --minutes are for everything.
    """
    asked = asked_config(config, settings, model=model, epochs=epochs, minutes=None)
    from vidi import Run
    from vidi import tune as run_search
    from vidi.show import display

    with display(quiet=as_json) as show:
        study = run_search(
            data,
            asked,
            space=space,
            minutes=minutes,
            trials=trials,
            sampler=sampler,  # type: ignore[arg-type]
            promotion=promotion,  # type: ignore[arg-type]
            fidelity=fidelity,  # type: ignore[arg-type]
            patience=patience,
            retrain=retrain,
            seed=seed,
            workers=workers,
            ray=ray,
            storage_url=storage,
            timeout_s=timeout_s,
            out=out,
            show=show,
            started_at=STARTED_AT,
        )
    final = Run.open(study.final_path)
    evaluation = evaluation_of(final)
    if as_json:
        print_json(
            {
                "study": str(study.path),
                "trials": len(study.trials()),
                "best": str(study.best_path),
                "run": str(final.path),
                "report": str(study.report_path),
                **shortly(evaluation),
            }
        )
        return
    print_evaluation(evaluation)
    typer.echo(f"report:  {study.report_path}")
    typer.echo(f"config:  vidi train DATA --config {shlex.quote(str(study.best_path))}")
    typer.echo(f"predict: vidi predict {shlex.quote(str(final.path))} IMAGES...")


def plan(
    data: Data,
    model: Model = None,
    epochs: Epochs = None,
    minutes: Minutes = None,
    config: ConfigFile = None,
    settings: Settings = None,
    lr_find: Annotated[
        bool,
        typer.Option(
            "--lr-find", help="Raise the learning rate until the loss leaves; draw it, say where."
        ),
    ] = False,
    picture: Annotated[
        Path, typer.Option("--picture", metavar="FILE", help="Where --lr-find draws.")
    ] = Path("learning-rate.svg"),
    as_json: AsJson = False,
) -> None:
    """Show every decision with its reason; trains nothing.

    The images are decoded and the training step is timed, as `train` would do it.
    """
    asked = asked_config(config, settings, model=model, epochs=epochs, minutes=minutes)
    from vidi import plan as make_plan
    from vidi.show import decision_table, display

    if lr_find:
        _find_rate(data, asked, picture, as_json=as_json)
        return
    with display(quiet=as_json) as show:
        prepared = make_plan(data, asked, show=show)
    if as_json:
        typer.echo(prepared.plan.model_dump_json(indent=2))
        return
    decision_table(prepared)


def ablate(
    data: Data,
    factors: Annotated[
        str | None,
        typer.Option(
            "--factors",
            metavar="A,B",
            help="What to change, in this order, e.g. batch_size,mirror or schedule:step for one "
            "level; everything, the most important first, if left out.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="N", min=2, help="Trainings of each change.")
    ] = 3,
    minutes: Minutes = None,
    workers: Workers = 1,
    epochs: Annotated[
        float | None,
        typer.Option("--epochs", metavar="N", help="Length of each training.", show_default=False),
    ] = None,
    model: Model = None,
    out: StudyFolder = None,
    config: ConfigFile = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Say what each technique buys on your images: one change at a time, with several seeds.

    Short trainings around your settings, or vidi's; each change is held against the same base by
    the same seeds and images. Test images are not looked at. The same command continues.
    """
    asked = asked_config(config, settings, model=model, epochs=epochs, minutes=None)
    from vidi import ablate as run_ablation
    from vidi.effects import of_study
    from vidi.show import display, effect_table

    with display(quiet=as_json) as show:
        study = run_ablation(
            data,
            asked,
            factors=() if factors is None else tuple(name.strip() for name in factors.split(",")),
            seeds=seeds,
            minutes=minutes,
            workers=workers,
            out=out,
            show=show,
            started_at=STARTED_AT,
        )
    found = of_study(study)
    if as_json:
        print_json(
            {
                "study": str(study.path),
                "report": str(study.report_path),
                "base": study.asked["base"],
                "seeds": seeds,
                "effects": [dataclasses.asdict(each) for each in found],
            }
        )
        return
    effect_table(found, seeds)
    typer.echo(f"page: {study.report_path}")


def _find_rate(data: str, asked: Config, picture: Path, *, as_json: bool) -> None:
    from vidi import find_learning_rate
    from vidi.show import display

    with display(quiet=as_json) as show:
        test = find_learning_rate(data, asked, out=picture, show=show)
    if as_json:
        print_json({**test._asdict(), "picture": str(picture)})
        return
    if test.per_256 is None:
        typer.echo("the loss did not fall at any rate: see the picture")
    else:
        typer.echo(f"falls fastest at {test.suggestion:.3g} for the run's batch size")
        typer.echo(f"to take it: --set train.learning_rate={test.per_256:.3g}")
        typer.echo("where learning begins fastest is not where it ends best: hold it against the")
        typer.echo("plan's own rate (the same command without --lr-find) on validation images")
    typer.echo(f"picture: {picture}")


def _launch(data: str, out: Path | None, *, processes: int, max_restarts: int) -> NoReturn:
    """The same command in several processes, which all need the same place for the run."""
    from datetime import datetime

    from vidi.launch import launch
    from vidi.run import data_name, default_run_path

    words = _without(sys.argv[1:], {"--nproc", "--max-restarts"})
    if out is None:
        words += ["--out", str(default_run_path(Path("runs"), data_name(data), datetime.now()))]
    sys.exit(launch(words, processes=processes, max_restarts=max_restarts))


def _without(words: list[str], options: set[str]) -> list[str]:
    """Command-line words without these options and their values."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in options:
            skip = True
        elif word.split("=")[0] not in options:
            kept.append(word)
    return kept
