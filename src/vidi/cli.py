"""The commands: parse, one call, print. Everything they do is there in Python under the same words.

Torch is imported only by the commands that need it, so that `vidi --help` answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from vidi import __version__
from vidi.errors import Interrupted, VidiError

if TYPE_CHECKING:
    from vidi.config import Config
    from vidi.data import CachedStore
    from vidi.metrics import Comparison, Evaluation
    from vidi.predict import Row
    from vidi.predictor import Predictor
    from vidi.study import Study

STARTED_AT = time.monotonic()

app = typer.Typer(
    name="vidi",
    help="A folder of images in, the best classifier that your time and your machine can buy out.",
    epilog="Start with: vidi train photos/   (one folder for each class inside)",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder with one folder of images for each class (inside train, validation and test "
        "folders, if there are such), a table (.csv, .jsonl, .parquet), tar shards, IDX or CIFAR "
        "files, module:object, or a name such as digits, mnist or cifar10.",
        show_default=False,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings as TOML.", show_default=False),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One setting, such as train.learning_rate=0.1; may be given again.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="A network, or module:function.", show_default=False
    ),
]
Epochs = Annotated[
    float | None,
    typer.Option("--epochs", metavar="N", help="Passes over the images.", show_default=False),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        "--minutes", metavar="M", help="Wall-clock time for everything.", show_default=False
    ),
]
StudyFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Where the study is kept; a stopped one there is continued.  "
        "[default: a new one in studies/]",
        show_default=False,
    ),
]
OwnModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODULE:FUNCTION",
        help="Your own network, if the run trained one.",
        show_default=False,
    ),
]
Tta = Annotated[
    bool,
    typer.Option(
        "--tta",
        help="Average over several views of each image: mirror images where training used them, "
        "corners where images are stored with a margin.",
    ),
]
AbstainBelow = Annotated[
    float | None,
    typer.Option(
        "--abstain-below",
        metavar="P",
        help="Abstain where the probability is lower.",
        show_default=False,
    ),
]
Precision = Annotated[
    float | None,
    typer.Option(
        "--precision",
        metavar="P",
        help="Abstain below the probability from which answers were right this often.",
        show_default=False,
    ),
]
Calibrated = Annotated[
    bool,
    typer.Option(
        "--calibrated", help="Probabilities divided by the temperature found on validation images."
    ),
]
Trusted = Annotated[
    bool, typer.Option("--trusted", help="Load a file of torch.export, which can run code.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def _answer_of(path: Path) -> Path:
    """The run that is the answer of a study; what is no study as it is."""
    if not (path / "study.json").exists():
        return path
    from vidi.errors import UsageError
    from vidi.study import Study

    study = Study.open(path)
    if not study.final_path.exists():
        fix = "give the same command again to continue it, or name a run in its trials/"
        if study.kind == "ablate":
            fix = f"an ablation trains no answer; see {study.report_path}"
        raise UsageError(f"{path} is a study without an answer yet", fix=fix)
    return study.final_path


RunDirectory = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A directory that `vidi train` wrote, or a study, for its answer.",
        show_default=False,
        callback=_answer_of,
    ),
]
RunOrStudy = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_OR_STUDY",
        help="A directory that `vidi train`, `tune`, `fit` or `ablate` wrote.",
        show_default=False,
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"vidi {__version__}")
        raise typer.Exit


@app.command()
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
    from vidi import train as run_training
    from vidi.show import display

    if nproc is not None and nproc > 1:
        _launch(data, out, processes=nproc, max_restarts=max_restarts)
    asked = _asked(config, settings, model=model, epochs=epochs, minutes=minutes)
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
    if int(os.environ.get("RANK", "0")) > 0:
        # The first of several processes speaks for all.
        return
    judged = run.evaluated_splits()
    split = "test" if "test" in judged else "validation"
    evaluation = _evaluation(run.read_evaluation(split))
    if as_json:
        _print_json(
            {
                "run": str(run.path),
                "report": str(run.report_path),
                "split": split,
                "accuracy": evaluation.accuracy,
                "accuracy_interval": evaluation.accuracy_interval,
                "n_evaluated": evaluation.n_evaluated,
                "n_leaked": evaluation.n_leaked,
                "accuracy_without_leaked": evaluation.without_leaked
                and evaluation.without_leaked.accuracy,
            }
        )
        return
    _print_evaluation(evaluation)
    typer.echo(f"report:  {run.report_path}")
    typer.echo(f"predict: vidi predict {shlex.quote(str(run.path))} IMAGES...")


@app.command()
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
        from vidi import fit as run_fit
        from vidi.show import display

        asked = _asked(config, settings, model=model, epochs=None, minutes=None)
        with display(quiet=as_json) as show:
            study = run_fit(
                data, asked, minutes=minutes, out=out, to=to, show=show, started_at=STARTED_AT
            )
        _print_fit(study, as_json=as_json)


def _print_fit(study: Study, *, as_json: bool) -> None:
    from vidi import Run

    run = Run.open(study.final_path)
    judged = run.evaluated_splits()
    split = "test" if "test" in judged else "validation"
    evaluation = _evaluation(run.read_evaluation(split))
    bundle = next((path for path in map(run.bundle_path, ("onnx", "torch")) if path.exists()), None)
    if as_json:
        _print_json(
            {
                "study": str(study.path),
                "run": str(run.path),
                "report": str(run.report_path),
                "bundle": bundle and str(bundle),
                "no_bundle_because": None if bundle else _why_no_bundle(study),
                "best": str(study.best_path),
                "split": split,
                "accuracy": evaluation.accuracy,
                "accuracy_interval": evaluation.accuracy_interval,
                "n_evaluated": evaluation.n_evaluated,
            }
        )
        return
    _print_evaluation(evaluation)
    typer.echo(f"report:  {run.report_path}")
    typer.echo(f"config:  vidi train DATA --config {shlex.quote(str(study.best_path))}")
    typer.echo(f"predict: vidi predict {shlex.quote(str(bundle or run.path))} IMAGES...")


def _why_no_bundle(study: Study) -> str:
    reasons = [event["why"] for event in study.events.read() if event["event"] == "not exported"]
    return reasons[-1] if reasons else "it was removed"


@app.command()
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
            help="What to try: a table \\[space] as TOML, or module:function.  [default: what is "
            "worth trying on such images]",
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
    patience: Annotated[
        int,
        typer.Option(
            "--patience", metavar="N", min=0, help="End when N trials were no better; 0: never."
        ),
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the suggestions.")] = 0,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=1, help="Trials at the same time.")
    ] = 1,
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
    from vidi import Run
    from vidi import tune as run_search
    from vidi.show import display

    asked = _asked(config, settings, model=model, epochs=epochs, minutes=None)
    with display(quiet=as_json) as show:
        study = run_search(
            data,
            asked,
            space=space,
            minutes=minutes,
            trials=trials,
            sampler=sampler,  # type: ignore[arg-type]
            promotion=promotion,  # type: ignore[arg-type]
            patience=patience,
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
    judged = final.evaluated_splits()
    split = "test" if "test" in judged else "validation"
    evaluation = _evaluation(final.read_evaluation(split))
    if as_json:
        _print_json(
            {
                "study": str(study.path),
                "trials": len(study.trials()),
                "best": str(study.best_path),
                "run": str(final.path),
                "report": str(study.report_path),
                "split": split,
                "accuracy": evaluation.accuracy,
                "accuracy_interval": evaluation.accuracy_interval,
                "n_evaluated": evaluation.n_evaluated,
            }
        )
        return
    _print_evaluation(evaluation)
    typer.echo(f"report:  {study.report_path}")
    typer.echo(f"config:  vidi train DATA --config {shlex.quote(str(study.best_path))}")
    typer.echo(f"predict: vidi predict {shlex.quote(str(final.path))} IMAGES...")


@app.command()
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
    from vidi import plan as make_plan
    from vidi.show import decision_table, display

    asked = _asked(config, settings, model=model, epochs=epochs, minutes=minutes)
    if lr_find:
        _find_rate(data, asked, picture, as_json=as_json)
        return
    with display(quiet=as_json) as show:
        prepared = make_plan(data, asked, show=show)
    if as_json:
        typer.echo(prepared.plan.model_dump_json(indent=2))
        return
    decision_table(prepared)


@app.command()
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

    asked = _asked(config, settings, model=None, epochs=None, minutes=None)
    with display() as show:
        path, made = contact_sheet(
            data, asked, out=out, num_images=images, columns=epochs, done=done, show=show
        )
    for name, value, reason in made.decisions():
        if name.startswith("augment."):
            typer.echo(f"{name.removeprefix('augment.')}: {value} ({reason})")
    typer.echo(f"look at: {path}")


@app.command()
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

    asked = _asked(config, settings, model=None, epochs=None, minutes=None)
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


@app.command()
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
    from vidi import ablate as run_ablation
    from vidi.effects import of_study
    from vidi.show import display, effect_table

    asked = _asked(config, settings, model=model, epochs=epochs, minutes=None)
    with display(quiet=as_json) as show:
        study = run_ablation(
            data,
            asked,
            factors=() if factors is None else tuple(name.strip() for name in factors.split(",")),
            seeds=seeds,
            minutes=minutes,
            out=out,
            show=show,
            started_at=STARTED_AT,
        )
    found = of_study(study)
    if as_json:
        _print_json(
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


@app.command()
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
        evaluation = judge(run, data, split=split, model=_own(model), show=show)
        averaged = None
        if tta:
            averaged = judge(run, data, split=split, model=_own(model), tta=True)
    if as_json and averaged is not None:
        both = {"plain": evaluation, "tta": averaged}
        _print_json({name: judged.model_dump(mode="json") for name, judged in both.items()})
        return
    if as_json:
        typer.echo(evaluation.model_dump_json(indent=2))
        return
    _print_evaluation(evaluation)
    if averaged is not None:
        _print_evaluation(averaged, "averaged over views, ")
    evaluation_tables(evaluation)


@app.command()
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
        _print_json(
            [
                {"a": str(runs[0]), "b": str(run), "sentence": each.sentence}
                | each.model_dump(mode="json")
                for run, each in pairs
            ]
        )
        return
    for run, each in zip(runs[1:], found, strict=True):
        typer.echo(f"{_printable(str(run))} against {_printable(str(runs[0]))}: {each.sentence}")


@app.command()
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
    from vidi.suspects import csv_of, doubts_of

    doubts = doubts_of(*map(_answer_of, runs), data=data)
    found = doubts.images
    if csv is not None:
        table = csv_of(doubts, csv.parent)
        storage.write_file(csv, table.encode("utf-8", "surrogateescape"))
    if as_json:
        _print_json([dataclasses.asdict(each) for each in found])
        return
    for each in found if csv is None else found[:0]:
        typer.echo(
            f"{_printable(each.file)}: {_printable(each.label)} "
            f"{each.probability_of_label:.1%}, rather {_printable(each.suggested)} "
            f"{each.probability_of_suggested:.1%}"
        )
    if csv is not None:
        where = _printable(str(csv))
        typer.echo(f"{len(found):,} doubtful labels, the first rows of {where}")
        typer.echo(f"correct their column label, then: vidi train {where}")


@app.command()
def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE_OR_RUN",
            help="What `vidi export`, `train`, `tune` or `fit` wrote.",
            show_default=False,
            callback=_answer_of,
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
    predictor = load(model, model=_own(own_model), calibrated=calibrated, trusted=trusted, tta=tta)
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


@app.command()
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
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", help="Where the run's data are now.", show_default=False
        ),
    ] = None,
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
        bundle = make_bundle(run, to=to, out=out, data=data, model=_own(model), show=show)
    about = bundle.about
    if as_json:
        _print_json({"bundle": str(bundle.path)} | about.model_dump(mode="json"))
        return
    parity = about.parity
    typer.echo(
        f"{parity.n:,} {parity.split} files from bytes to label: {parity.label_agreement:.1%} the "
        f"same label, probabilities within {parity.largest_difference:.1g}, accuracy "
        f"{parity.accuracy_trained:.2%} trained and {parity.accuracy_bundle:.2%} shipped"
    )
    typer.echo(f"bundle:  {bundle.path}  ({sum(f.num_bytes for f in about.files) / 1e6:.1f} MB)")
    typer.echo(f"predict: vidi predict {shlex.quote(str(bundle.path))} IMAGES...")


@app.command()
def serve(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE",
            help="What `vidi export` wrote; a run or a study too.",
            show_default=False,
            callback=_answer_of,
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

    predictor = load(model, model=_own(own_model), calibrated=calibrated, trusted=trusted)
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


@app.command()
def report(
    run: RunOrStudy,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Also where the model looked, a map of the images, and what is alike.",
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", help="Where the run's data are now.", show_default=False
        ),
    ] = None,
    model: OwnModel = None,
) -> None:
    """Write the report of a run or a study again: one HTML page that opens anywhere."""
    from vidi import report as write_report
    from vidi.show import display

    with display() as show:
        page = write_report(run, explain=explain, data=data, model=_own(model), show=show)
    typer.echo(str(page))


@app.command()
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
        _print_json(list(views)) if as_json else typer.echo("\n".join(views))
        return
    if view not in views:
        raise UsageError(f"the report of {run} has no part '{view}'", fix=nearest(view, views))
    if as_json:
        _print_json(views[view])
    else:
        show_value(views[view])


@app.command()
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
        _print_json([asdict(line) for line in found])
    else:
        models_table(found)


@app.command()
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
        _print_json({"folder": str(cache_folder()), **rows})
        return
    if removed:
        freed = sum(store.num_bytes for store in removed)
        typer.echo(f"removed {len(removed)}, {freed / 1e9:.2f} GB")
    cache_table(cache_folder(), stores)


def _row(store: CachedStore) -> dict[str, Any]:
    return {**store._asdict(), "path": str(store.path)}


@app.command()
def tensorboard(
    run: RunDirectory,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the event files go.")
    ] = Path("tensorboard"),
) -> None:
    """Write a run's curves, settings and mistakes for `tensorboard --logdir DIR`."""
    from vidi import tensorboard as write_events

    typer.echo(f"tensorboard --logdir {write_events(run, out)}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has, what is missing, and what to do about it."""
    from vidi import doctor as examine

    findings = examine()
    if as_json:
        typer.echo(findings.model_dump_json(indent=2))
        return
    for finding in findings.lines():
        typer.echo(finding)


def _asked(
    path: Path | None,
    assignments: list[str] | None,
    *,
    model: str | None,
    epochs: float | None,
    minutes: float | None,
) -> Config:
    """The config file, then --set, then the options of the command."""
    from vidi import config as configuration

    asked = configuration.read(path) if path else configuration.Config()
    settings = configuration.parse_settings(assignments or [])
    options = {"model.name": model, "train.epochs": epochs, "train.minutes": minutes}
    settings |= {name: value for name, value in options.items() if value is not None}
    return asked.with_settings(settings)


def _find_rate(data: str, asked: Config, picture: Path, *, as_json: bool) -> None:
    from vidi import find_learning_rate
    from vidi.show import display

    with display(quiet=as_json) as show:
        test = find_learning_rate(data, asked, out=picture, show=show)
    if as_json:
        _print_json({**test._asdict(), "picture": str(picture)})
        return
    if test.per_256 is None:
        typer.echo("the loss did not fall at any rate: see the picture")
    else:
        typer.echo(f"falls fastest at {test.suggestion:.3g} for the run's batch size")
        typer.echo(f"to take it: --set train.learning_rate={test.per_256:.3g}")
    typer.echo(f"picture: {picture}")


def _launch(data: str, out: Path | None, *, processes: int, max_restarts: int) -> NoReturn:
    """The same command in several processes, which all need the same place for the run."""
    from datetime import datetime

    from vidi.launch import launch
    from vidi.run import default_run_path

    words = _without(sys.argv[1:], {"--nproc", "--max-restarts"})
    if out is None:
        path = Path(data)
        name = path.resolve().name if path.exists() else data
        words += ["--out", str(default_run_path(Path("runs"), name, datetime.now()))]
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


def _own(name: str | None) -> Any:
    if name is None:
        return None
    from vidi.config import load

    return load(name)


def _evaluation(text: str) -> Evaluation:
    from vidi.metrics import Evaluation

    return Evaluation.model_validate_json(text)


def _print_evaluation(evaluation: Evaluation, how: str = "") -> None:
    low, high = evaluation.accuracy_interval
    split = {"test": "test", "validation": "validation (used to choose the weights: optimistic)"}
    name = split.get(evaluation.split, evaluation.split)
    typer.echo(
        f"{how}{name} accuracy {evaluation.accuracy:.2%} "
        f"(95 % interval {low:.2%} to {high:.2%}, {evaluation.n_evaluated:,} images)"
    )
    if evaluation.n_evaluated != evaluation.n_expected:
        missing = evaluation.n_expected - evaluation.n_evaluated
        typer.echo(f"{missing:,} images of that split could not be read and are not counted")
    if evaluation.n_leaked:
        beside = evaluation.without_leaked
        text = f"{evaluation.n_leaked:,} of those images can also be seen in training"
        if beside is not None:
            low, high = beside.accuracy_interval
            text += f"; without them {beside.accuracy:.2%} ({low:.2%} to {high:.2%})"
        typer.echo(text)


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
        typer.echo(f"{_printable(row.file)}: {row.reason}: {_printable(row.message)}", err=True)
        return
    ranked = "  ".join(f"{_printable(label)} {share:.1%}" for label, share in row.top)
    unsure = "  (abstains)" if row.abstained else ""
    typer.echo(f"{_printable(row.file)}: {ranked}{unsure}")


def _print_json(value: Any, *, indent: int | None = 2) -> None:
    typer.echo(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False))


def _printable(text: str) -> str:
    """Names come from the user's disk: control characters would drive the terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, VidiError):
        return _printable(error.message)
    return _printable(getattr(error, "strerror", None) or str(error))


@contextlib.contextmanager
def _errors_explained() -> Iterator[None]:
    """Our errors in words and with their exit code; all else is a bug, with its traceback."""
    try:
        yield
    except Interrupted as error:
        _fail(str(error), error.status, error)
    except VidiError as error:
        _fail(str(error), error.exit_code, error)
    except KeyboardInterrupt:
        _fail("stopped before training began; nothing was lost", 130)
    except BrokenPipeError:
        # The reader has gone (`| head`). Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _fail(message: str, status: int, error: VidiError | None = None) -> NoReturn:
    """On standard error in words; where JSON was asked for, on standard output as JSON too."""
    if error is not None and "--json" in sys.argv[1:]:
        about = {"error": error.message, "fix": error.fix, "kind": type(error).__name__}
        # One line: of a command that prints one object a line it is the last.
        _print_json({**about, "exit_code": status}, indent=None)
    lines = [_printable(line) for line in message.splitlines()]
    typer.echo("vidi: " + "\n".join(lines), err=True)
    sys.exit(status)


def main() -> None:
    """The entry point of the `vidi` command."""
    with _errors_explained():
        app()
