"""What must hold of docker-compose.yml; each rule a sentence, which says where it does not hold."""

from __future__ import annotations

import re
from typing import Any

Compose = dict[str, Any]

OURS = "incident-hpo:"
ROLES = {
    "migrate": "hpo_owner",
    "hpo": "hpo_owner",
    "dashboard": "hpo_reader",
    "worker": "hpo_worker",
    "worker-gpu": "hpo_worker",
}
SECRETS = {
    "certs": [],
    "postgres": ["postgres_password", "hpo_owner_password"],
    "migrate": ["hpo_owner_password", "hpo_worker_password", "hpo_reader_password"],
    "dashboard": ["hpo_reader_password", "access.yaml"],
    "worker": ["hpo_worker_password"],
    "worker-gpu": ["hpo_worker_password"],
    "hpo": ["hpo_owner_password"],
}


def nobody_is_root(compose: Compose) -> None:
    for name, service in compose["services"].items():
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service.get("user", "")), name


def root_file_systems_are_read_only(compose: Compose) -> None:
    for name, service in compose["services"].items():
        assert service.get("read_only") is True, name
        assert "/tmp" in service.get("tmpfs", []), name


def no_process_has_or_gains_a_capability(compose: Compose) -> None:
    for name, service in compose["services"].items():
        assert service.get("cap_drop") == ["ALL"], name
        assert "cap_add" not in service, name
        assert "no-new-privileges:true" in service.get("security_opt", []), name


def only_the_dashboard_is_published_and_on_this_machine_alone(compose: Compose) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"dashboard": ["127.0.0.1:8080:8080"]}


def the_database_is_in_a_network_without_a_way_out(compose: Compose) -> None:
    assert compose["networks"]["database"].get("internal") is True
    assert compose["services"]["postgres"].get("networks") == ["database"]
    assert compose["services"]["certs"].get("network_mode") == "none"


def every_image_is_of_one_release(compose: Compose) -> None:
    for name, service in compose["services"].items():
        assert re.search(r":\d+\.\d+", service["image"]), name


def no_password_stands_in_the_file(compose: Compose) -> None:
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            assert "PASSWORD" not in variable or variable.endswith("_FILE"), (name, variable)
            assert not re.search(r"://[^/@]*:[^/@]*@", value), (name, variable)
    for name, secret in compose["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}


def each_service_sees_the_secrets_of_its_own_role_alone(compose: Compose) -> None:
    assert {name: service.get("secrets", []) for name, service in compose["services"].items()} == SECRETS
    for name, role in ROLES.items():
        environment = compose["services"][name]["environment"]
        assert environment["HPO_STORAGE"].startswith(f"postgresql://{role}@postgres/hpo?"), name
        assert environment["HPO_PASSWORD_FILE"] == f"/run/secrets/{role}_password", name


def every_client_verifies_the_server(compose: Compose) -> None:
    for name in ROLES:
        url = compose["services"][name]["environment"]["HPO_STORAGE"]
        assert url.endswith("?sslmode=verify-full&sslrootcert=/run/tls/ca.crt"), name
        assert "tls:/run/tls:ro" in compose["services"][name]["volumes"], name


def each_step_waits_for_the_one_before(compose: Compose) -> None:
    before = {name: service.get("depends_on", {}) for name, service in compose["services"].items()}
    assert before["certs"] == {}
    assert before["postgres"] == {"certs": {"condition": "service_completed_successfully"}}
    assert before["migrate"] == {"postgres": {"condition": "service_healthy"}}
    for name in ROLES.keys() - {"migrate"}:
        assert before[name] == {"migrate": {"condition": "service_completed_successfully"}}, name


def servers_are_looked_at(compose: Compose) -> None:
    """The database by TCP, as its socket answers while the first start is still at work, and by a query."""
    check = " ".join(compose["services"]["postgres"]["healthcheck"]["test"])
    assert "pg_isready -q -h 127.0.0.1" in check
    assert "SELECT 1" in check
    assert "8080" in " ".join(compose["services"]["dashboard"]["healthcheck"]["test"])


def logs_do_not_fill_the_disk(compose: Compose) -> None:
    for name, service in compose["services"].items():
        assert {"max-size", "max-file"} <= service.get("logging", {}).get("options", {}).keys(), name


def nothing_of_ours_restarts_for_ever(compose: Compose) -> None:
    for name, service in compose["services"].items():
        forever = ["unless-stopped"] if name == "postgres" else []
        assert service.get("restart") in ["no", "on-failure:5", *forever], name


def workers_have_time_to_give_their_trials_back(compose: Compose) -> None:
    for name, service in compose["services"].items():
        assert service.get("stop_grace_period") == "30s", name
        assert service.get("init") is (True if service["image"].startswith(OURS) else None), name


def memory_and_processes_are_bound(compose: Compose) -> None:
    for name, service in compose["services"].items():
        assert {"mem_limit", "pids_limit"} <= service.keys(), name
    assert "cpus" in compose["services"]["postgres"]
    assert all("shm_size" in compose["services"][name] for name in ("postgres", "worker", "worker-gpu"))


def files_of_the_host_are_read_only_but_for_results(compose: Compose) -> None:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            assert not volume.startswith(("/", "~")), name
            assert not volume.startswith("./") or volume.endswith(":ro") or volume == "./results:/results", name
    assert "./studies:/studies:ro" in compose["services"]["hpo"]["volumes"]


def without_a_profile_come_the_database_and_the_dashboard(compose: Compose) -> None:
    profiles = {name: service.get("profiles") for name, service in compose["services"].items()}
    always = dict.fromkeys(["certs", "postgres", "migrate", "dashboard"])
    assert profiles == always | {"worker": ["cpu"], "worker-gpu": ["gpu"], "hpo": ["tools"]}


def the_gpu_worker_has_all_gpus_and_a_torch_for_them(compose: Compose) -> None:
    service = compose["services"]["worker-gpu"]
    devices = [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    assert service.get("deploy") == {"resources": {"reservations": {"devices": devices}}}
    assert service["build"]["args"] == {"TORCH_INDEX": "https://pypi.org/simple"}
    assert service["image"] != compose["services"]["worker"]["image"]
