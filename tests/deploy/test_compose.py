"""The shipped Compose file and Dockerfile, looked at without an engine; `make compose-check` brings them up."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.settings import PREFIX, Settings
from tests.compose.stack import COMPOSE, OVERRIDE, ROOT, SHIPPED

EXAMPLE = ROOT / ".env.example"
IMAGES = {name: service.get("image") for name, service in yaml.safe_load(SHIPPED.read_text())["services"].items()}
ONCE = {"topics", "datasets"}
OURS = {"producer", "learner", "learner-2"} | ONCE


def config(*files: Path, variables: Path = Path("/dev/null"), folder: Path | None = None) -> dict[str, Any]:
    """What Compose makes of these files, with all profiles; ``folder``: where a .env is read for our programs."""
    command: list[str | Path] = [
        COMPOSE,
        "--project-directory",
        folder or ROOT,
        "--env-file",
        variables,
        "--profile",
        "*",
    ]
    for file in files:
        command += ["--file", file]
    environment = {
        "PATH": os.environ["PATH"],
        "CHECK_DATASETS": "/datasets",
        "CHECK_KAFKA": IMAGES["kafka"],
        "CHECK_PROMETHEUS": IMAGES["prometheus"],
    }
    command += ["config", "--format", "json", *([] if folder else ["--no-env-resolution"])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "variable is not set" not in done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = config(SHIPPED)["services"]
    return found


def test_everything_that_is_promised_is_there(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == {"kafka", "prometheus", "grafana"} | OURS
    assert [name for name, service in services.items() if service.get("profiles")] == ["learner-2"]


def test_ports_are_published_on_loopback_only(services: dict[str, dict[str, Any]]) -> None:
    ports = {port["published"]: port["host_ip"] for s in services.values() for port in s.get("ports", [])}
    assert ports == dict.fromkeys(("9092", "9108", "9090", "3000"), "127.0.0.1")


def test_the_broker_tells_clients_on_the_host_the_port_that_is_published(tmp_path: Path) -> None:
    variables = tmp_path / "env"
    variables.write_text("KAFKA_PORT=19092\n")
    kafka = config(SHIPPED, variables=variables)["services"]["kafka"]
    assert kafka["ports"][0]["published"] == "19092"
    assert "PLAINTEXT_HOST://localhost:19092," in kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"]


def test_every_service_that_goes_on_has_a_health_check(services: dict[str, dict[str, Any]]) -> None:
    in_image = {name for name in OURS if "HEALTHCHECK" in (ROOT / services[name]["build"]["dockerfile"]).read_text()}
    checked = {name for name, service in services.items() if service.get("healthcheck", {}).get("test")}
    assert checked | in_image >= set(services)
    assert {name for name, service in services.items() if service.get("healthcheck", {}).get("disable")} == ONCE


def test_nothing_starts_before_what_it_needs(services: dict[str, dict[str, Any]]) -> None:
    needed = {
        (name, other): needs["condition"]
        for name, service in services.items()
        for other, needs in service.get("depends_on", {}).items()
    }
    assert needed["topics", "kafka"] == "service_healthy"
    for program in ("producer", "learner", "learner-2"):
        assert needed[program, "topics"] == "service_completed_successfully"
    assert needed["producer", "datasets"] == "service_completed_successfully"
    assert needed["prometheus", "learner"] == needed["grafana", "prometheus"] == "service_healthy"


def test_every_service_is_confined(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"] is True, name
        assert int(service["mem_limit"]) <= 1536 << 20, name
        assert service["pids_limit"] <= 1024, name
        assert service["ulimits"]["nofile"] <= 16384, name
        assert service.get("read_only", False) is (name != "kafka"), name
        assert not service.get("privileged"), name


def test_services_come_back_after_a_crash_and_those_that_end_are_left_alone(
    services: dict[str, dict[str, Any]],
) -> None:
    policies = {name: service["restart"] for name, service in services.items()}
    assert {name for name, policy in policies.items() if policy == "no"} == ONCE
    assert policies["producer"] == "on-failure"
    assert {policies[name] for name in set(services) - ONCE - {"producer"}} == {"unless-stopped"}


def test_images_are_pinned(services: dict[str, dict[str, Any]]) -> None:
    pulled = [service["image"] for service in services.values() if "build" not in service]
    assert all(re.fullmatch(r"[\w/.-]+:v?\d+\.\d+\.\d+@sha256:[0-9a-f]{64}", image) for image in pulled), pulled


def test_what_is_kept_is_kept_in_volumes_with_names(services: dict[str, dict[str, Any]]) -> None:
    volumes = {
        v["source"]: v["target"] for s in services.values() for v in s.get("volumes", []) if v["type"] == "volume"
    }
    assert (
        set(volumes) == set(config(SHIPPED)["volumes"]) == {"kafka", "datasets", "snapshots", "prometheus", "grafana"}
    )


def test_what_is_mounted_from_here_exists_and_is_read_only(services: dict[str, dict[str, Any]]) -> None:
    bound = [v for service in services.values() for v in service.get("volumes", []) if v["type"] == "bind"]
    assert {str(Path(v["source"]).relative_to(ROOT)) for v in bound} == {
        "scenarios",
        "deploy/prometheus",
        "deploy/grafana/provisioning",
        "deploy/grafana/dashboards",
    }
    assert all(v["read_only"] and Path(v["source"]).is_dir() for v in bound)


def test_positions_in_the_stream_outlive_a_year_of_rest(services: dict[str, dict[str, Any]]) -> None:
    assert int(services["kafka"]["environment"]["KAFKA_OFFSETS_RETENTION_MINUTES"]) > 366 * 24 * 60


def test_our_variables_are_settings(services: dict[str, dict[str, Any]]) -> None:
    given = {name for service in services.values() for name in service.get("environment", {})}
    given |= set(re.findall(rf"\b{PREFIX}\w+", (ROOT / "deploy/Dockerfile").read_text() + EXAMPLE.read_text()))
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert {name for name in given if name.startswith(PREFIX)} <= known


def test_the_example_names_every_variable_with_its_default() -> None:
    example = dict(line.lstrip("#").split("=", 1) for line in EXAMPLE.read_text().splitlines() if "=" in line)
    mine = {name: value for name, value in example.items() if not name.startswith(PREFIX)}
    assert mine == dict(re.findall(r"\$\{(\w+):-([^}]*)\}", SHIPPED.read_text()))


def test_an_env_file_reaches_our_programs(tmp_path: Path) -> None:
    shutil.copy(SHIPPED, tmp_path)
    variables = tmp_path / ".env"
    variables.write_text("SCENARIO=split\nMARKETSTREAM_FILTERS=480\nGROUP=big\n")
    services = config(tmp_path / SHIPPED.name, variables=variables, folder=tmp_path)["services"]
    assert services["producer"]["command"][2] == "split"
    assert services["learner"]["environment"]["MARKETSTREAM_FILTERS"] == "480"
    assert services["learner"]["environment"]["MARKETSTREAM_GROUP"] == "big"


def test_kafka_s_password_reaches_those_only_that_log_in(tmp_path: Path) -> None:
    shutil.copy(SHIPPED, tmp_path)
    variables = tmp_path / ".env"
    variables.write_text("MARKETSTREAM_KAFKA_PASSWORD=secret\n")
    services = config(tmp_path / SHIPPED.name, variables=variables, folder=tmp_path)["services"]
    knowing = {name for name, service in services.items() if "secret" in json.dumps(service)}
    assert knowing == {"topics", "producer", "learner", "learner-2"}


def test_the_check_changes_nothing_but_how_to_build_and_where_the_data_is() -> None:
    shipped, checked = config(SHIPPED), config(SHIPPED, OVERRIDE)
    for service in (*shipped["services"].values(), *checked["services"].values()):
        service.get("build", {}).pop("network", None)
        service.pop("env_file", None)
    assert checked["volumes"].pop("datasets")["driver_opts"]["device"] == "/datasets"
    del shipped["volumes"]["datasets"], checked["x-ours"]
    assert checked == shipped


def test_the_dockerfile_is_clean() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "deploy/Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_the_image_compiles_is_sent_to_whoever_builds_it() -> None:
    compiled = re.findall(r"compileall -q (.*?) \\\n", (ROOT / "deploy/Dockerfile").read_text())
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert compiled
    assert set(compiled[0].split()) <= sent


def test_the_program_of_the_image_loads_without_tinygrad() -> None:
    code = (
        "import sys; sys.modules['tinygrad'] = None; "
        "import consumers.learn, producers.replay, pipeline.records.create; "
        "from pipeline.features import Filters, make; make(Filters(0, 4), 'blas')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
