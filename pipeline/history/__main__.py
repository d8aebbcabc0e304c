"""``python -m pipeline.history``: the commands of ``pipeline.history.commands``."""

from pipeline import cli
from pipeline.history.commands import main

cli.run(main)
