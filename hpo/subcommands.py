"""Commands in groups: `hpo db`, `hpo space`, `hpo study`. Heavy libraries load inside, so that --help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

db = typer.Typer(help="The embedded PostgreSQL, and the tables and roles of a shared one.", no_args_is_help=True)
space = typer.Typer(help="What is searched.", no_args_is_help=True)
workers = typer.Typer(help="Who works where, and sending the workers of a box away.", invoke_without_command=True)
study = typer.Typer(help="Pause a study, let it go on, or for longer.", no_args_is_help=True)

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study in the database.")]
SpaceName = Annotated[str, typer.Argument(metavar="PRESET|STUDY.yaml", help="Preset, or study file with a space.")]
Model = Annotated[str | None, typer.Option(help="Whose bounds; default: the embedded static one.")]


@db.command("start")
def db_start() -> None:
    """Start the embedded server if it is not running, and print its URL.

    Example: hpo db start
    """
    from storage import embedded

    print(embedded.start(embedded.default_home()))


@db.command("stop")
def db_stop() -> None:
    """Stop the embedded server.

    Example: hpo db stop
    """
    from storage import embedded

    print("stopped" if embedded.stop(embedded.default_home()) else "was not running")


@db.command("url")
def db_url() -> None:
    """Print the URL of the embedded server without starting it.

    Example: hpo db url
    """
    from storage import embedded

    print(embedded.url(embedded.default_home()))


PasswordFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Holds the role's password, alone.")]


@db.command("init")
def db_init(worker_password_file: PasswordFile = None, reader_password_file: PasswordFile = None) -> None:
    """Make the tables, and the roles hpo_worker and hpo_reader, in the database of HPO_STORAGE, as its owner.

    Example: hpo db init --worker-password-file worker.txt
    """
    from hpo.database import init

    init(worker_password_file, reader_password_file)


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the tables up to this release, ours and Optuna's, as their owner, while no worker runs.

    Example: hpo db upgrade
    """
    from hpo.database import upgrade

    upgrade()


@db.command("fence")
def db_fence() -> None:
    """After a restore: leases given out before count no more, and trials that ran then wait. Start workers after it.

    Example: hpo db fence
    """
    from hpo.database import fence

    fence()


@workers.callback()
def workers_list(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False
) -> None:
    """List the workers of all boxes and studies: what they do, when they were last heard of, trials done and failed.

    Example: hpo workers
    """
    from hpo.workers import print_workers

    if context.invoked_subcommand is None:
        print_workers(as_json=as_json)


@workers.command("drain")
def workers_drain(host: Annotated[str, typer.Argument(metavar="HOST", help="As `hpo workers` lists it.")]) -> None:
    """Have all workers of a box give their trials back at a checkpoint and leave; returns when they have.

    Example: hpo workers drain gpu-box-3
    """
    from hpo.workers import drain

    drain(host)


@space.command("show")
def space_show(name: SpaceName, model: Model = None) -> None:
    """Print a space with the reason of each bound, to be used or changed under `space` in a study file.

    Example: hpo space show quick_wins --model all-mpnet-base-v2
    """
    from hpo.space_view import show

    print(show(name, model))


@space.command("sample")
def space_sample(
    name: SpaceName,
    model: Model = None,
    points: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw points of a space at random.

    Example: hpo space sample quick_wins -n 3
    """
    from hpo.space_view import sample

    for line in sample(name, model, points, seed):
        print(line)


@study.command("pause")
def study_pause(name: StudyName) -> None:
    """Start no more trials; those that run are finished, then their workers wait with an idle device.

    Example: hpo study pause demo
    """
    from hpo.ending import pause
    from hpo.run import open_by_name

    pause(open_by_name(name)[0])
    print(f"study {name} is paused; let it go on: hpo study resume {name}")


@study.command("resume")
def study_resume(name: StudyName) -> None:
    """Let a paused study go on; if a bug had paused it, what failed before no longer counts.

    Example: hpo study resume demo
    """
    from hpo.ending import resume
    from hpo.run import open_by_name

    resume(open_by_name(name)[0])
    print(f"study {name} goes on; start its workers again if they are gone: hpo worker {name}")


@study.command("extend")
def study_extend(
    name: StudyName,
    trials: Annotated[int, typer.Option(min=0, help="So many more.")] = 0,
    hours: Annotated[float, typer.Option(min=0, help="So many more.")] = 0.0,
    gpu_hours: Annotated[float, typer.Option(min=0, help="So many more.")] = 0.0,
) -> None:
    """Raise a study's budget, also when it has ended; a plateau counts anew.

    Example: hpo study extend demo --trials 20
    """
    from hpo.ending import extend
    from hpo.run import open_by_name

    budget = extend(*open_by_name(name), trials, hours, gpu_hours).budget
    limits = {"hours": budget.hours, "GPU-hours": budget.gpu_hours}
    words = [f"{budget.trials} trials", *(f"{limit:g} {unit}" for unit, limit in limits.items() if limit)]
    print(f"study {name} has {', '.join(words)} in all; work on it: hpo worker {name}")
