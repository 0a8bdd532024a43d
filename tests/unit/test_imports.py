"""What a command loads is what people wait for, and what a worker must not share with the training."""

import subprocess
import sys


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=True)


def test_help_answers_without_torch_or_optuna() -> None:
    done = python("-X", "importtime", "-m", "hpo", "--help")
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "export" in done.stdout
    assert "hpo" in loaded
    assert not loaded & {"torch", "optuna", "sqlalchemy", "transformers", "numpy"}


def test_what_waits_and_looks_loads_no_torch_and_nothing_that_takes_a_second() -> None:
    modules = "hpo.run, hpo.worker, hpo.launch, hpo.status, hpo.report_command, hpo.export, hpo.display"
    loaded = set(python("-c", f"import sys, {modules}; print(*sys.modules)").stdout.split())
    assert "hpo.worker" in loaded
    assert not loaded & {"torch", "sentence_transformers", "transformers", "sklearn", "scipy", "pandas", "plotly"}
