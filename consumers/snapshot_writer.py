"""Writes snapshots in a thread of its own, while learning goes on."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor

from consumers.recovery.state import State
from pipeline.broker import Broker, Partition
from pipeline.monitoring.metrics import Metrics
from pipeline.records.topics import Topics
from pipeline.snapshots.snapshot import Folder, Snapshot

log = logging.getLogger(__name__)


class SnapshotWriter:
    """Snapshots of one learner.

    Parameters
    ----------
    folder
        Where they go; None: nowhere.
    """

    def __init__(self, broker: Broker, topics: Topics, metrics: Metrics, folder: Folder | None) -> None:
        self._broker, self._topics, self._metrics, self._folder = broker, topics, metrics, folder
        self._writer = ThreadPoolExecutor(1, "write")
        self._saving: Future[None] | None = None

    def save(self, state: State) -> None:
        """Write a snapshot, if there is anything new; of several learners, the one that has partition 0 does."""
        if self._folder and 0 in state.owner.positions and state.owner.reach > state.saved:
            self.finish()
            predictions = Partition(self._topics.predictions, 0)
            if snapshot := state.snapshot(self._broker.extents(predictions.topic)[predictions].end):
                self._saving = self._writer.submit(self._write, self._folder, snapshot)
                state.saved = state.owner.reach

    def finish(self) -> None:
        """Wait for the snapshot that is being written. Raises SnapshotError if it could not be."""
        if self._saving:
            self._saving.result()
            self._saving = None

    def _write(self, folder: Folder, snapshot: Snapshot) -> None:
        path = folder.save(snapshot)
        self._metrics.snapshots.inc()
        log.info("snapshot %s: %s images", path, f"{snapshot.images:,}")
