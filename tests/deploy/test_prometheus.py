"""Prometheus's files: sound, tested by promtool, and about metrics that exist."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local import prometheus
from deploy.local.process import free_ports
from deploy.local.prometheus import PrometheusUnavailableError, install, running
from deploy.local.stack import ROOT, SHIPPED
from tests.deploy.metrics import exported, named

RULES, ALERTS = SHIPPED / "rules.yml", SHIPPED / "alerts.yml"
NAME = re.compile(r"(class|job|job_le|job_outcome|job_reason):marketplace_[a-z_]+:[a-z0-9]+")


def rules(path: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def promtool(programs: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [str(programs / "promtool"), *map(str, arguments)]
    return subprocess.run(command, cwd=SHIPPED, capture_output=True, text=True, check=False)


def test_configuration_and_rules_are_sound(programs: Path) -> None:
    for check in (("config", "prometheus.yml"), ("rules", "--lint=all", "--lint-fatal", "rules.yml", "alerts.yml")):
        done = promtool(programs, "check", *check)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", ["rules_test.yml", "alerts_test.yml"])
def test_rules_give_what_their_tests_expect(programs: Path, file: str) -> None:
    done = promtool(programs, "test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", rules(ALERTS), ids=lambda rule: rule["alert"])
def test_each_alert_has_a_test_where_it_fires_and_one_where_it_stays_silent(alert: dict[str, Any]) -> None:
    cases = yaml.safe_load((SHIPPED / "alerts_test.yml").read_text())["tests"]
    about = [[bool(t["exp_alerts"]) for t in c["alert_rule_test"] if t["alertname"] == alert["alert"]] for c in cases]
    assert any(any(fires) for fires in about)
    assert any(fires and not any(fires) for fires in about)


@pytest.mark.parametrize("alert", rules(ALERTS), ids=lambda rule: rule["alert"])
def test_each_alert_says_what_happened_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(alert["annotations"]) == {"summary", "description"}
    assert all(text.endswith(".") for text in alert["annotations"].values())


def test_recorded_names_say_level_metric_and_operation() -> None:
    recorded = [rule["record"] for rule in rules(RULES)]
    assert all(NAME.fullmatch(record) for record in recorded)
    assert len(recorded) == len(set(recorded))


def test_every_recorded_name_has_a_test() -> None:
    tests = (SHIPPED / "rules_test.yml").read_text()
    assert [rule["record"] for rule in rules(RULES) if rule["record"] not in tests] == []


@pytest.mark.parametrize("rule", rules(RULES) + rules(ALERTS), ids=lambda rule: rule.get("record") or rule["alert"])
def test_rules_name_metrics_that_exist(rule: dict[str, Any]) -> None:
    known = exported() | {rule["record"] for rule in rules(RULES)} | {"up"}
    assert named(rule["expr"]) - known == set()


def test_the_jobs_are_those_that_the_alerts_know() -> None:
    jobs = {job["job_name"] for job in yaml.safe_load((SHIPPED / "prometheus.yml").read_text())["scrape_configs"]}
    assert {job for rule in rules(ALERTS) for job in re.findall(r'job="(\w+)"', rule["expr"])} <= jobs


def run_without_prometheus(empty: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment |= {"PATH": str(empty), "XDG_CACHE_HOME": str(empty / "cache"), **variables}
    command = [sys.executable, "-m", "pytest", __file__, "-rs", "-k", "configuration"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_where_prometheus_cannot_be_had_its_tests_are_left_out_and_say_what_to_install(tmp_path: Path) -> None:
    done = run_without_prometheus(tmp_path)
    assert done.returncode == 0
    assert re.search(r"left out: a real Prometheus: .*install the package prometheus", done.stdout)


def test_where_prometheus_cannot_be_had_its_tests_fail_if_ci_says_that_they_must_run(tmp_path: Path) -> None:
    done = run_without_prometheus(tmp_path, CI="true")
    assert done.returncode == 1
    assert "install the package prometheus" in done.stdout


def test_the_package_is_unpacked_once_and_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unpack(work: Path) -> Path:
        asked.append(work)
        (work / "usr" / "bin").mkdir(parents=True)
        (work / "usr" / "bin" / "promtool").touch()
        return work / "usr" / "bin"

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(prometheus, "debian", lambda _package, _folder, work: unpack(work))
    assert [install(tmp_path / "cache"), install(tmp_path / "cache")] == [tmp_path / "cache" / "prometheus"] * 2
    assert (tmp_path / "cache" / "prometheus" / "promtool").exists()
    assert len(asked) == 1


def test_a_prometheus_that_does_not_come_up_says_why(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text("scrape_configs: 7\n")
    with (
        pytest.raises(PrometheusUnavailableError, match=r"did not come up: .*prometheus\.yml"),
        running(programs, tmp_path / "prometheus.yml", *free_ports(1)),
    ):
        pass
