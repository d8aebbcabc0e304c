"""Reading the code along one image's way takes few jumps."""

import subprocess
import sys
from pathlib import Path

from tests.prove.harness import PROOF

pytestmark = PROOF

MOST = 24


def test_one_image_passes_few_files_on_its_way_through_a_learner() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-m", "tests.way"], cwd=root, capture_output=True, text=True, check=True)
    *files, told = done.stdout.split("\n")[:-1]
    assert int(told.split()[0]) <= MOST, done.stdout
    assert any("consumers/worker.py" in line for line in files)
