"""The model check: many schedules, each from its seed.

python -m tests.simulation.check [SCHEDULES] [FIRST]
"""

import multiprocessing
import sys
from random import Random

from pipeline.cores import CORES
from tests.simulation.arithmetic import Arithmetic, Counted
from tests.simulation.learner import Learner
from tests.simulation.world import ViolationError, World

CHUNK = 500


def first_violation(
    seeds: range, arithmetic: Arithmetic | None = None, learner: type[Learner] = Learner
) -> tuple[int, str] | None:
    """The first of the seeds whose schedule breaks a rule, and which; None if all hold."""
    for seed in seeds:
        random = Random(seed).random
        world = World(lambda n, random=random: int(random() * n), arithmetic or Counted(), learner)  # type: ignore[misc]
        try:
            world.play()
        except ViolationError as violation:
            return seed, str(violation)
    return None


def on_all_cores(schedules: int, first: int = 0) -> list[tuple[int, str]]:
    """Violations among so many schedules, the first of every 500."""
    chunks = [range(start, min(start + CHUNK, first + schedules)) for start in range(first, first + schedules, CHUNK)]
    with multiprocessing.get_context("spawn").Pool(CORES) as pool:
        return [found for found in pool.imap_unordered(first_violation, chunks) if found]


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]] or [10_000]
    violations = on_all_cores(*numbers)
    print(f"{numbers[0]:,} schedules, {len(violations)} violations {violations[:5]}")
    sys.exit(bool(violations))
