"""One image's way through a learner at work: the files that it passes, in order.

    python -m tests.way

A learner with the default settings runs in this process, on an embedded broker of its own. It learns a stream first;
then a producer sends one image more. From the moment in which a poll returns that image until its prediction is
committed and the learner's metrics count it, a profile hook notes every file of this project in which a function is
called, in any thread of this process but the display's: that one looks at the worker every five seconds, whether or
not an image is on its way.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from types import FrameType

from consumers import learn
from deploy.local.process import free_ports
from pipeline.broker import connect

ROOT = Path(__file__).parent.parent
LEARNT = 3_000
"""Images before the one that is watched."""
PATIENCE = 120.0


class Tracer:
    """Notes files, from the next poll that returns something after ``arm`` up to ``stop``."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self._armed = self._open = False

    def __call__(self, frame: FrameType, event: str, value: object) -> None:
        if not (self._armed or self._open) or threading.current_thread().name == "display":
            return
        name = frame.f_code.co_filename
        if not name.startswith(f"{ROOT}{os.sep}") or name == __file__ or "site-packages" in name:
            return
        if self._armed and event == "return" and frame.f_code.co_name == "poll" and value:
            self._armed, self._open = False, True
        if self._open and event == "call" and (file := str(Path(name).relative_to(ROOT))) not in self.files:
            self.files.append(file)

    def arm(self) -> None:
        self._armed = True

    def stop(self) -> None:
        self._armed = self._open = False


def images_counted(port: int) -> int:
    """What the learner's metrics page counts; 0 as long as there is none."""
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        lines = [line for line in page.read().decode().splitlines() if line.startswith("marketplace_images_total{")]
        return int(sum(float(line.rpartition(" ")[2]) for line in lines))
    return 0


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the learner did not get there within {PATIENCE:g} s")
        time.sleep(0.05)


def send(url: str, images: int) -> None:
    """Replay the first images of ``mixed``; what was sent before is not sent again."""
    command = [sys.executable, "-m", "producers.replay", "mixed", "--broker", url, "--images", str(images)]
    subprocess.run([*command, "--producer-metrics-port", "0"], check=True, capture_output=True, cwd=ROOT)


def predicted(url: str) -> int:
    with closing(connect(url)) as broker:
        return sum(extent.end for extent in broker.extents("predictions").values())


def drive(url: str, port: int, tracer: Tracer) -> None:
    """Let the learner learn, then send it the one image; at the end stop it, as Ctrl-C would."""
    try:
        send(url, LEARNT)
        wait_for(lambda: images_counted(port) == LEARNT)
        tracer.arm()
        send(url, LEARNT + 1)
        wait_for(lambda: images_counted(port) == LEARNT + 1 and predicted(url) == LEARNT + 1)
    finally:
        tracer.stop()
        os.kill(os.getpid(), signal.SIGINT)


def traced() -> list[str]:
    """Run the learner, and the image through it. It needs this process's main thread, for the signal that ends it."""
    with tempfile.TemporaryDirectory() as folder:
        url, (port,), tracer = f"sqlite:///{folder}/stream.db", free_ports(1), Tracer()
        driver = threading.Thread(target=drive, args=(url, port, tracer))
        driver.start()  # before the hook: what the driver itself does is not the image's way
        threading.setprofile(tracer)
        sys.setprofile(tracer)
        try:
            flags = ("--broker", url, "--snapshots", f"{folder}/snapshots", "--metrics-port", str(port), "--json")
            with redirect_stdout(StringIO()):
                learn.main(flags)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        driver.join()
    return tracer.files


if __name__ == "__main__":
    files = traced()
    print(*(f"{place:3} {file}" for place, file in enumerate(files, 1)), f"\n{len(files)} files", sep="\n")
