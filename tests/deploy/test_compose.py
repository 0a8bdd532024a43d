"""docker-compose.yml: what the specification, the linters and our rules say, and that a broken copy breaks a rule."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from hpo.cli import app
from tests.conftest import REPOSITORY, TEST_ALL
from tests.deploy import rules
from tests.deploy.rules import Compose

RULES = [rule for _, rule in inspect.getmembers(rules, inspect.isfunction)]
REMOVED = object()
POSTGRES_URL = "postgresql://hpo_worker@postgres/hpo?sslmode="
BROKEN: list[tuple[Any, str, Any]] = [
    (rules.nobody_is_root, "services.dashboard.user", "0:0"),
    (rules.nobody_is_root, "services.postgres.user", REMOVED),
    (rules.root_file_systems_are_read_only, "services.postgres.read_only", REMOVED),
    (rules.root_file_systems_are_read_only, "services.worker.tmpfs", REMOVED),
    (rules.no_process_has_or_gains_a_capability, "services.certs.cap_drop", ["NET_RAW"]),
    (rules.no_process_has_or_gains_a_capability, "services.postgres.cap_add", ["CHOWN"]),
    (rules.no_process_has_or_gains_a_capability, "services.hpo.security_opt", REMOVED),
    (rules.only_the_dashboard_is_published_and_on_this_machine_alone, "services.dashboard.ports", ["8080:8080"]),
    (
        rules.only_the_dashboard_is_published_and_on_this_machine_alone,
        "services.postgres.ports",
        ["127.0.0.1:5432:5432"],
    ),
    (rules.the_database_is_in_a_network_without_a_way_out, "networks.database.internal", REMOVED),
    (rules.the_database_is_in_a_network_without_a_way_out, "services.postgres.networks", ["database", "outside"]),
    (rules.the_database_is_in_a_network_without_a_way_out, "services.certs.network_mode", REMOVED),
    (rules.every_image_is_of_one_release, "services.postgres.image", "postgres:latest"),
    (rules.every_image_is_of_one_release, "services.worker.image", "incident-hpo"),
    (rules.no_password_stands_in_the_file, "services.postgres.environment.POSTGRES_PASSWORD", "hunter2"),
    (rules.no_password_stands_in_the_file, "services.worker.environment.HPO_STORAGE", "postgresql://a:b@postgres/hpo"),
    (rules.no_password_stands_in_the_file, "secrets.postgres_password", {"environment": "PASSWORD"}),
    (rules.each_service_sees_the_secrets_of_its_own_role_alone, "services.worker.secrets", ["hpo_owner_password"]),
    (
        rules.each_service_sees_the_secrets_of_its_own_role_alone,
        "services.dashboard.environment.HPO_STORAGE",
        POSTGRES_URL,
    ),
    (rules.every_client_verifies_the_server, "services.worker.environment.HPO_STORAGE", f"{POSTGRES_URL}require"),
    (rules.every_client_verifies_the_server, "services.hpo.volumes", ["home:/var/lib/hpo"]),
    (rules.each_step_waits_for_the_one_before, "services.dashboard.depends_on", ["postgres"]),
    (rules.each_step_waits_for_the_one_before, "services.migrate.depends_on.postgres.condition", "service_started"),
    (rules.servers_are_looked_at, "services.postgres.healthcheck.test", ["CMD", "pg_isready"]),
    (rules.servers_are_looked_at, "services.dashboard.healthcheck.test", ["CMD", "true"]),
    (rules.logs_do_not_fill_the_disk, "services.worker.logging", REMOVED),
    (rules.nothing_of_ours_restarts_for_ever, "services.worker.restart", "always"),
    (rules.nothing_of_ours_restarts_for_ever, "services.dashboard.restart", "on-failure"),
    (rules.workers_have_time_to_give_their_trials_back, "services.worker.stop_grace_period", REMOVED),
    (rules.workers_have_time_to_give_their_trials_back, "services.worker-gpu.init", REMOVED),
    (rules.memory_and_processes_are_bound, "services.dashboard.mem_limit", REMOVED),
    (rules.memory_and_processes_are_bound, "services.postgres.cpus", REMOVED),
    (rules.memory_and_processes_are_bound, "services.worker-gpu.shm_size", REMOVED),
    (rules.files_of_the_host_are_read_only_but_for_results, "services.hpo.volumes", ["./studies:/studies"]),
    (rules.files_of_the_host_are_read_only_but_for_results, "services.worker.volumes", ["/var/run/docker.sock:/s"]),
    (rules.without_a_profile_come_the_database_and_the_dashboard, "services.worker.profiles", REMOVED),
    (rules.the_gpu_worker_has_all_gpus_and_a_torch_for_them, "services.worker-gpu.deploy", REMOVED),
    (rules.the_gpu_worker_has_all_gpus_and_a_torch_for_them, "services.worker-gpu.build.args", {}),
]


@pytest.fixture(scope="module")
def compose() -> Compose:
    loaded: Compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    return loaded


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_compose_file_keeps_the_rule(compose: Compose, rule: Any) -> None:
    rule(compose)


@pytest.mark.parametrize(
    ("rule", "place", "value"), BROKEN, ids=[f"{rule.__name__}-{place}" for rule, place, _ in BROKEN]
)
def test_a_copy_that_breaks_the_rule_is_found(compose: Compose, rule: Any, place: str, value: Any) -> None:
    copy = deepcopy(compose)
    *path, last = place.split(".")
    inner = copy
    for key in path:
        inner = inner[key]
    if value is REMOVED:
        del inner[last]
    else:
        inner[last] = value
    with pytest.raises(AssertionError):
        rule(copy)


def test_every_rule_has_a_copy_that_breaks_it() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES)


def test_the_compose_file_is_of_the_specification() -> None:
    said = run(
        sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"
    )
    assert said.returncode == 0, said.stdout


def test_the_specification_refuses_an_unknown_key(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text("services: {a: {image: b, capdrop: [ALL]}}\n")
    said = run(
        sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(tmp_path / "c.yml")
    )
    assert said.returncode == 1
    assert "capdrop" in said.stdout


def test_docker_compose_reads_the_file() -> None:
    said = run(needed("docker-compose"), "config", "--services")
    assert said.returncode == 0, said.stdout
    assert set(said.stdout.split()) == set(rules.SECRETS)


def test_linters_find_nothing_in_the_compose_file_and_the_dockerfile() -> None:
    said = [run(tool("compose-lint"), "docker-compose.yml"), run(tool("hadolint"), "Dockerfile")]
    said.append(run(tool("shellcheck"), *map(str, REPOSITORY.glob("deploy/**/*.sh"))))
    assert [one.returncode for one in said] == [0, 0, 0], "".join(one.stdout for one in said)


def test_only_what_the_image_is_made_of_goes_to_the_builder() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert next(line for line in lines if not line.startswith("#")) == "*"
    assert sent == {
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "hpo",
        "objectives",
        "search_spaces",
        "storage",
    }


def test_what_holds_secrets_or_tickets_is_not_committed() -> None:
    said = run("git", "check-ignore", "secrets/hpo_owner_password", "studies/incidents.csv", "results/best.yaml")
    assert len(said.stdout.split()) == 3, said.stdout


def test_commands_of_the_guide_name_services_and_commands_that_there_are(compose: Compose) -> None:
    guide = (REPOSITORY / "docs/deployment.md").read_text()
    found = re.findall(r'docker compose run --rm (?:--user "[^"]+" )?([\w-]+)(?: ([\w-]+))?', guide)
    assert len(found) > 5
    assert {service for service, _ in found} <= compose["services"].keys()
    assert {command for _, command in found} <= {"", *get_command(app).commands}  # type: ignore[attr-defined]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60
    )


def tool(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def needed(name: str) -> str:
    """A program of Debian's; without it the test is skipped, under HPO_TEST_ALL=1 it fails."""
    if shutil.which(name) is None:
        missing = f"no {name}: apt-get install {name}"
        pytest.fail(missing) if TEST_ALL else pytest.skip(missing)
    return name
