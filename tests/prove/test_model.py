"""100,000 random schedules of the protocol between learners, or as many as the variable SCHEDULES says."""

import os

from tests.prove.harness import PROOF
from tests.simulation.check import on_all_cores

pytestmark = PROOF

SCHEDULES = int(os.environ.get("SCHEDULES", "100000"))


def test_every_schedule_comes_to_the_same_sums_and_predicts_each_image_once() -> None:
    assert on_all_cores(SCHEDULES) == []
