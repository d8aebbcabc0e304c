"""A learner in a process of its own, watched from outside through its metrics."""

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.processes import command
from deploy.local.prometheus import free_port
from pipeline.errors import BrokerError
from pipeline.settings import Settings

LOOK = 0.02
"""Seconds between two looks."""


class Watched:
    """A learner; ``begun`` is when its process was started, on the monotonic clock. It keeps to ``cores``, if any."""

    def __init__(self, url: str, folder: Path, settings: Settings, *flags: str, cores: Collection[int] = ()) -> None:
        self._port = free_port()
        self._log = folder.with_suffix(".log")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self.begun = time.monotonic()
        port = ("--metrics-port", str(self._port))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command(url, str(folder), None, settings, *flags, *port), stdout=subprocess.PIPE, stderr=log
            )
        if cores:
            os.sched_setaffinity(self._process.pid, cores)  # long before it counts them

    def value(self, name: str) -> float:
        """A metric, all its labels added up; 0 as long as it is not shown. Raises BrokerError if the learner ended."""
        if self._process.poll() is not None:
            raise BrokerError(f"a learner ended: {self._log.read_text().strip()[-500:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=30) as answer:
                text = answer.read().decode()
        except OSError:
            return 0.0
        families = text_string_to_metric_families(text)
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    def seconds_until(self, name: str, least: float = 1.0) -> float:
        """Since its process was started, until a metric is so large."""
        while self.value(name) < least:
            time.sleep(LOOK)
        return time.monotonic() - self.begun

    def stop(self) -> dict[str, Any]:
        """As Ctrl-C does; its summary."""
        self._process.send_signal(signal.SIGTERM)
        out, _ = self._process.communicate()
        summary: dict[str, Any] = orjson.loads(out)
        return summary

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def learning(url: str, folder: Path, settings: Settings, *flags: str, cores: Collection[int] = ()) -> Iterator[Watched]:
    """A learner for the length of the block, if nobody stops it before."""
    learner = Watched(url, folder, settings, *flags, cores=cores)
    try:
        yield learner
    finally:
        learner.kill()
