"""A producer, a learner and a Prometheus as three processes, with an embedded broker: the stack without containers."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.local import process, prometheus
from deploy.local.queries import Query, ask

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "deploy" / "prometheus"

PATIENCE = 120.0


@dataclass(frozen=True)
class Stack:
    """``url`` is Prometheus; ``began`` is when the producer was started, in seconds since 1970."""

    url: str
    began: float
    producer: "subprocess.Popen[bytes]"


def await_value(url: str, expr: str, value: float) -> None:
    """Wait until a query has this one value. Raises TimeoutError."""

    def values() -> list[float]:
        return [line.values[0] for line in ask(url, Query("A", expr, instant=True), 0, time.time(), 1)]

    if not process.until(lambda: values() == [value], PATIENCE):
        raise TimeoutError(f"{expr} is not {value} after {PATIENCE:g} s, but {values()}")


def config(ports: Mapping[str, Sequence[int]], interval: str) -> dict[str, Any]:
    """The shipped configuration, its targets on this machine, and scraped more often."""
    shipped: dict[str, Any] = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    shipped["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), interval)
    shipped["rule_files"] = [str(SHIPPED / name) for name in shipped["rule_files"]]
    for job in shipped["scrape_configs"]:
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in ports.get(job["job_name"], ())]}]
    return shipped


@contextmanager
def running(
    folder: Path, programs: Path, interval: str, producer: Sequence[str], learner: Sequence[str] = ()
) -> Iterator[Stack]:
    """The stack, its parts given these arguments and scraped so often; whatever is left of it at the end is stopped.

    Raises PrometheusUnavailableError, or TimeoutError if the learner does not come up.
    """
    jobs = ("learner", "producer", "prometheus")
    ports = dict(zip(jobs, process.free_ports(len(jobs)), strict=True))
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config({job: [port] for job, port in ports.items()}, interval)))
    common = ("--broker", f"sqlite:///{folder}/stream.db")
    with ExitStack() as stack:

        def program(module: str, *arguments: str) -> "subprocess.Popen[bytes]":
            command = (sys.executable, "-m", module, *arguments)
            return stack.enter_context(process.running(command, folder / f"{module}.log", ROOT))

        url = stack.enter_context(prometheus.running(programs, file, ports["prometheus"]))
        flags = ("--snapshots", str(folder / "snapshots"), "--metrics-port", str(ports["learner"]), *learner)
        program("consumers.learn", *common, *flags)
        await_value(url, 'up{job="learner"}', 1)
        began = time.time()
        port = ("--producer-metrics-port", str(ports["producer"]))
        yield Stack(url, began, program("producers.replay", *producer, *common, *port))
