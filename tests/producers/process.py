"""A producer of its own process: ``python -m tests.producers.process URL IMAGES [RATE]`` replays a small scenario."""

import sys

from pipeline import cli
from pipeline.broker import Topic, connect
from pipeline.data.scenario import Scenario
from pipeline.data.stream import Stream, make_stream
from producers.replay import replay
from tests.pipeline.data.test_scenario import splits

TOPIC = Topic("images", partitions=2)


def stream(images: int, run: str | None = None, seed: int = 0, first: int | None = None) -> Stream:
    """Digits, then as many clothes; only the ``first`` images of them."""
    halves = [{"name": name, "images": images // 2, "classes": {name: 1}} for name in ("digits", "fashion")]
    scenario = Scenario.model_validate({"name": "small", "about": "For tests.", "seed": seed, "phases": halves})
    return make_stream(scenario.first(first or images), splits(*[images // 10] * 10), run)


def main() -> int:
    url, images, *rate = sys.argv[1:]
    broker, small = connect(url), stream(int(images))
    with cli.stop_on_signals() as stop:
        outcome = replay(broker, small, TOPIC, stop, rate=float(rate[0]) if rate else None)
    print(outcome.position, outcome.complete)
    broker.close()
    return 0


if __name__ == "__main__":
    cli.run(main)
