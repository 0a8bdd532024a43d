"""Commands on what a search has found: reports, confirmation, files, models. Heavy libraries load inside them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hpo.subcommands import StudyName

results = typer.Typer()

ModelFolder = Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="What `hpo train` made.")]


class Split(StrEnum):
    VALIDATION = "validation"
    TRAIN = "train"


@results.command()
def report(
    study: Annotated[str, typer.Argument(metavar="STUDY|PLAN|FILE.yaml", help="Name or file; or scores by hand.")],
    out: Annotated[Path | None, typer.Option("-o", help="Page (.html) or Markdown (.md) to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    to_dashboard: Annotated[bool, typer.Option("--publish", help="To the dashboard's pages, too.")] = False,
) -> None:
    """Say which targets can be met and how, at what odds, what the trials show, and what to do next.

    Example: hpo report demo -o report.html
    """
    from hpo.report_command import print_report

    print_report(study, out, as_json=as_json, to_dashboard=to_dashboard)


@results.command()
def confirm(
    study: StudyName,
    top: Annotated[int, typer.Option(min=1, help="So many of the best trials, beside the baselines.")] = 5,
    seeds: Annotated[int, typer.Option(min=3, help="Seeds that choose; as many others judge.")] = 5,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; default one per GPU, or 2.")] = None,
) -> None:
    """Train the best trials and the baselines on several seeds, and judge the best once on test.

    Other boxes help with: hpo worker STUDY/confirm

    Example: hpo confirm demo --top 3 --seeds 5
    """
    from hpo.confirm import confirm as confirm_study

    confirm_study(study, top, seeds, workers)


@results.command()
def export(
    study: StudyName,
    out: Annotated[Path, typer.Option("-o", help="File to write.")] = Path("best.yaml"),
    top: Annotated[int, typer.Option(min=1, help="Write this many; the second best goes to best-2.yaml.")] = 1,
) -> None:
    """Write the best configuration as a YAML file that trains.

    Example: hpo export demo -o best.yaml
    """
    from hpo.export import export as export_study
    from hpo.run import open_by_name

    for path in export_study(*open_by_name(study), out, top):
        print(path)


@results.command()
def train(
    source: Annotated[str, typer.Argument(metavar="best.yaml|STUDY#N", help="File of hpo export, or trial N.")],
    out: Annotated[Path, typer.Option("-o", help="Folder for the model; must not exist yet.")],
) -> None:
    """Train the model that a best.yaml describes, or a trial's, as the trial did; compare, and write a model card.

    Example: hpo train best.yaml -o model
    """
    from hpo.train import train_again

    train_again(source, out)


@results.command()
def ensemble(
    study: StudyName,
    out: Annotated[Path, typer.Option("-o", help="Folder for the model; must not exist yet.")],
    top: Annotated[int, typer.Option(min=1, help="Choose among so many of the best trials.")] = 8,
    distill: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Teach this base what the ensemble knows.")
    ] = None,
) -> None:
    """Combine the best trials' models on validation, judge once on test, and write one model.

    Example: hpo ensemble demo --top 8 -o model
    """
    from hpo.ensemble import make_ensemble
    from hpo.run import open_by_name

    make_ensemble(*open_by_name(study), top, out, distill)


@results.command()
def pairs(
    study: StudyName,
    out: Annotated[Path, typer.Option("-o", help="CSV file to write: texts, grade, label.")],
    split: Annotated[Split, typer.Option(help="Which pairs.")] = Split.VALIDATION,
) -> None:
    """Write the pairs that scores are computed on, so that anybody can check them.

    Example: hpo pairs demo --split validation -o pairs.csv
    """
    from hpo.run import open_by_name
    from hpo.train import write_pairs

    print(f"{write_pairs(*open_by_name(study), split, out)} pairs: {out}")


@results.command()
def match(
    model: ModelFolder,
    first: Annotated[str, typer.Argument(metavar="TEXT", help="Of one incident.")],
    second: Annotated[str, typer.Argument(metavar="TEXT", help="Of another.")],
    same_item: Annotated[bool, typer.Option("--same-item", help="Both concern one configuration item.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say whether two incidents are a match: their similarity, and its probability where the model has a head.

    Example: hpo match model "VPN drops every hour" "no connection to vpn"
    """
    from hpo.match import match as match_texts

    match_texts(model, first, second, same_item=same_item, as_json=as_json)


@results.command()
def similar(
    model: ModelFolder,
    incidents: Annotated[Path, typer.Argument(metavar="INCIDENTS", help="Export with the columns of the training's.")],
    query: Annotated[str, typer.Option(help="Text of an incident; - reads it from standard input.")],
    top: Annotated[int, typer.Option(min=1, help="How many to list.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
) -> None:
    """List the incidents of an export that are most similar to a text.

    Example: hpo similar model incidents.csv --query "VPN drops every hour" --top 5
    """
    from hpo.match import similar as list_similar

    list_similar(model, incidents, query, top, as_json=as_json)
