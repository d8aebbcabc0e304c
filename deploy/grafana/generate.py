"""Write the dashboards that Grafana reads.

python -m deploy.grafana.generate
"""

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.learning import learning
from deploy.grafana.pipeline import pipeline
from deploy.grafana.queries import FOLDER


def files() -> dict[Path, str]:
    """What each file should hold."""
    boards = {"learning": learning(), "pipeline": pipeline()}
    return {
        FOLDER / f"{name}.json": json.dumps(board.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"
        for name, board in boards.items()
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for path, text in files().items():
        path.write_text(text)
        print(path)


if __name__ == "__main__":
    main()
