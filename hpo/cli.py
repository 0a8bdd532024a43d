"""The command line: parse, call, print. Heavy libraries load inside the commands, so that --help is instant."""

from __future__ import annotations

import sys
from enum import StrEnum
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from hpo.log import LogFormat
from hpo.result_commands import results
from hpo.subcommands import StudyName, db, space
from hpo.subcommands import study as study_group
from hpo.subcommands import workers as workers_group

app = typer.Typer(
    name="hpo",
    help="Searches the best way to fine-tune a model of incident similarity.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(results)
app.add_typer(db, name="db")
app.add_typer(space, name="space")
app.add_typer(study_group, name="study")
app.add_typer(workers_group, name="workers")

ShareGpu = Annotated[bool, typer.Option("--share-gpu", help="Even if another study's worker has the GPU.")]
Format = Annotated[LogFormat, typer.Option("--log-format", help="Of the log: lines of text, or of JSON.")]
LOOPBACK = "127.0.0.1"
StudyPath = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Study file.")]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"incident-hpo {version('incident-hpo')}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None: ...


class Preset(StrEnum):
    servicenow = "servicenow"
    jira = "jira"


@app.command()
def run(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY.yaml|PLAN.yaml", help="Study file, or plan of several.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; default one per GPU, or 2.")] = None,
    out: Annotated[Path | None, typer.Option("-o", help="Folder for results; default runs/NAME.")] = None,
) -> None:
    """Create a study, work on it with processes on this box, and export the best; of a plan, phase after phase.

    Example: hpo run examples/demo.yaml
    """
    from hpo.phases import run_plan
    from hpo.run import run_study
    from hpo.study_file import is_plan

    (run_plan if is_plan(study_file) else run_study)(study_file, workers, out)


@app.command()
def create(study_file: StudyPath) -> None:
    """Create a study without working on it.

    Example: hpo create examples/demo.yaml
    """
    from hpo.run import create as create_study
    from hpo.study_file import read_study_file

    file = create_study(read_study_file(study_file))[1]
    print(f"study {file.name} is there; work on it with: hpo worker {file.name}")


@app.command()
def worker(study: StudyName, share_gpu: ShareGpu = False, log_format: Format = LogFormat.text) -> None:
    """Work on a study until it is finished: one agent, on one GPU. `hpo launch` starts one for each GPU of a box.

    Example: hpo worker demo
    """
    import os
    import signal

    from hpo.errors import Interrupted

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # until it claims trials it has nothing to give back
        signal.signal(number, lambda *_: os._exit(Interrupted.exit_code))

    from hpo.connect import storage_url
    from hpo.log import configure, in_log
    from hpo.worker import work

    configure(log_format)
    raise typer.Exit(in_log(log_format, lambda: work(storage_url(), study, share_gpu=share_gpu)))


@app.command()
def launch(
    study: StudyName,
    gpus: Annotated[str | None, typer.Option(help="all, or numbers as nvidia-smi has them: 0,1. Default all.")] = None,
    per_gpu: Annotated[int | None, typer.Option(min=1, help="Workers on each GPU; default 1.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Workers in all; default 2 without a GPU.")] = None,
    out: Annotated[Path | None, typer.Option("-o", help="Folder for logs; default runs/STUDY.")] = None,
    share_gpu: ShareGpu = False,
    log_format: Format = LogFormat.text,
) -> None:
    """Work on a study with a worker for each GPU of this box; those that are cut short are started again.

    Example: hpo launch demo --gpus 0,1
    """
    from hpo.launch import launch as launch_workers

    launch_workers(study, gpus, per_gpu, workers, out, share_gpu=share_gpu, log_format=log_format)


@app.command()
def status(
    study: StudyName,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until the study is finished.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show what a study has done so far.

    Example: hpo status demo --json
    """
    from hpo.run import print_status

    print_status(study, watch=watch, as_json=as_json)


@app.command()
def trial(study: StudyName, number: Annotated[int, typer.Argument(metavar="N", help="Its number, from 0 on.")]) -> None:
    """Say why a trial was proposed, how it went, and what ended it.

    Example: hpo trial demo 7
    """
    from hpo.display import make_console
    from hpo.explain import explain
    from hpo.run import open_by_name

    make_console().print(*explain(*open_by_name(study), number), sep="\n", soft_wrap=True)


@app.command()
def costs(study: StudyName) -> None:
    """Show the trials that no other beats in quality, size, speed and training time at once.

    Example: hpo costs demo
    """
    from hpo.costs import cost_table, frontier
    from hpo.display import make_console
    from hpo.run import open_by_name

    found, file = open_by_name(study)
    make_console().print(cost_table(frontier(found.get_trials(deepcopy=False)), file.constraints))


@app.command("prune-audit")
def prune_audit(
    study: StudyName, as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False
) -> None:
    """Replay a study's curves: what would each pruner have saved, and what missed?

    Example: hpo prune-audit demo
    """
    from hpo.audit import print_audit
    from hpo.run import open_by_name

    print_audit(*open_by_name(study), as_json=as_json)


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to serve on; others than this machine's need --access.")
    ] = LOOPBACK,
    access: Annotated[Path | None, typer.Option(metavar="FILE", help="Who may log in; else a token lets in.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Let those change notes, trials, studies who may.")] = False,
) -> None:
    """Serve optuna-dashboard to those who may see it; read-only unless --write is given.

    Example: hpo dashboard --access access.yaml --write
    """
    from hpo.dashboard import serve

    serve(port, host, access, write=write)


@app.command("dashboard-user")
def dashboard_user(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose password is asked for, or read from a pipe.")],
    access: Annotated[Path, typer.Option("-f", metavar="FILE", help="Access file to make or change.")],
    write: Annotated[
        bool | None, typer.Option("--write/--no-write", help="May change things; default as it is.")
    ] = None,
) -> None:
    """Make a user of the dashboard, or set the password anew.

    Example: hpo dashboard-user anna --write -f access.yaml
    """
    from hpo.access import make_user

    make_user(access, name, write=write)


@app.command()
def doctor(study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="Also of this study.")] = None) -> None:
    """Look whether this box is fit for work: database, TLS, role, clock, disk, memory, GPU, model, data set.

    Example: hpo doctor demo
    """
    from hpo.doctor import examine

    examine(study)


@app.command("check-data")
def check_data(
    path: Annotated[str, typer.Argument(metavar="INCIDENTS|STUDY.yaml", help="Export, or study file that names one.")],
    preset: Annotated[Preset | None, typer.Option(help="How the export names its columns.")] = None,
    page: Annotated[Path | None, typer.Option("-o", help="HTML page with plots to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show what an export holds and which scores its labels allow.

    Example: hpo check-data incidents.csv
    """
    from hpo.check_data import check_data as check

    check(path, preset.value if preset else None, page, as_json=as_json)


@app.command()
def clean() -> None:
    """Remove what this box has kept of exports and training pairs; it is made anew when needed.

    Example: hpo clean
    """
    from hpo.datasets import clean as clean_cache

    print(f"removed {clean_cache() / 2**20:,.1f} MiB")


@app.command("demo-data")
def demo_data(
    out: Annotated[Path, typer.Option("-o", help="CSV file to write.")],
    incidents: Annotated[int | None, typer.Option(min=1, help="How many; default 4000.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write synthetic incidents to try the service with.

    Example: hpo demo-data -o incidents.csv --incidents 1000
    """
    from hpo.errors import InputError
    from objectives.demo_incidents import DEFAULT_INCIDENTS, write_demo_incidents

    size = incidents or DEFAULT_INCIDENTS
    try:
        write_demo_incidents(out, size, seed)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None
    print(f"{size} incidents: {out}")


def main() -> None:
    """Errors that carry an exit code end with their sentence; any other is a defect and shows its trace."""
    from hpo.errors import in_words

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a sign that the terminal's encoding lacks is no reason to end
    try:
        app()
    except Exception as error:
        if (words := in_words(error)) is None:
            raise
        print(f"hpo: {words[0]}", file=sys.stderr)
        sys.exit(words[1])
