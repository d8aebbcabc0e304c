"""How long a learner takes to begin in a group that has learnt from ten million images.

The topic ``sums`` is written as such a group leaves it, by the code that decides what is published and deleted: real
records on a real broker, of the real size. Every delta holds the same 20,000 images, and a base so many times their
sums. Each of them moves the clock by one offset of each partition, and not by as many as it has images: the images
themselves are not needed any more, and in such a run they would be gone from their topic too.
"""

from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import fill
from benchmarks.scale.watch import learning
from pipeline.broker import Broker, Member, Partition, Position, Topic, connect
from pipeline.broker import Record as Raw
from pipeline.data.stream import Stream
from pipeline.features import Filters
from pipeline.group.encoding import LogIdentity, encode, kind
from pipeline.group.membership import Learnt
from pipeline.group.publishing import CHECKPOINT_IMAGES, LONG_DELTA, PublishingOwner
from pipeline.group.shared import Checkpoint, Delta, GroupRecord, Shared
from pipeline.learners.clearing.sums import Sums
from pipeline.learners.identity import ClearingIdentity
from pipeline.records.images import encode as encode_image
from pipeline.records.topics import Topics
from pipeline.settings import Settings
from tests.simulation.arithmetic import Tally

IMAGES = 10_000_000
PARTITIONS = 4
IMAGES_LEFT = 4096
PREFIX = "late."


@dataclass
class History:
    """Writes what a group publishes while it learns; ``delta`` are the sums of ``images`` images."""

    broker: Broker
    topics: Topics
    run: LogIdentity
    delta: Sums
    images: int

    def __post_init__(self) -> None:
        self._sums = self.topics.sums(self.run.group)
        self.broker.ensure_topics([Topic(self._sums.topic, 1)])

    def write(self, deltas: int) -> int:
        """At least so many deltas, and on until the next base would be due; how many it were."""
        share: PublishingOwner[int, int] = PublishingOwner(
            "history", Shared(0), Tally(0), self.images
        )  # sums as a number of deltas
        share.set_assignment(range(PARTITIONS))
        for partition in range(PARTITIONS):
            share.acquire(partition, None)
            share.mark_ready(partition, 0)
        deleted = done = since = learnt = 0
        with closing(self.broker.producer("history")) as producer:
            while done < deltas or since < CHECKPOINT_IMAGES // LONG_DELTA:
                learnt += 1
                publication = share.begin(dict.fromkeys(range(PARTITIONS), learnt))
                with producer.transaction() as transaction:
                    for record in publication.records:
                        transaction.produce(self._encoded(record))
                    at = {Partition(self.topics.images, p): Position(at) for p, at in share.positions.items()}
                    transaction.commit_offsets(Member(self.run.group), at)
                share.committed({p: Learnt(learnt, int(p == 0), 0 if p else self.images) for p in range(PARTITIONS)})
                for record in publication.records:
                    share.read(record, self.broker.end(self._sums))
                since = 0 if publication.base else since + bool(publication.delta)
                done += bool(publication.delta)
                if share.deletable > deleted:
                    deleted = share.deletable
                    self.broker.delete_before(self._sums, deleted)
        return done

    def _encoded(self, record: GroupRecord[int]) -> list[Raw]:
        value: GroupRecord[Sums]
        match record:
            case Delta():
                value = Delta(record.id, record.spans, self.delta, record.images)
            case Checkpoint(published=published):
                sums = times(self.delta, published.sums)
                value = Checkpoint(record.id, Shared(sums, published.clock, published.position))
            case _:
                raise ValueError("nothing is taken back here")
        return encode(self._sums.topic, self.run, value)


def times(sums: Sums, number: int) -> Sums:
    """So many of the same sums, added up."""
    columns = {name: number * column for name, column in sums.T.items()}
    return Sums(number * sums.A, columns, {name: number * count for name, count in sums.counts.items()})


def measure(url: str, folder: Path, stream: Stream, delta: Sums, settings: Settings) -> dict[str, Any]:
    """Write the topic, then start a learner with an empty disk: seconds until it is at work, and has predicted.

    ``delta`` are the sums of ``settings.publish_images`` images.
    """
    topics, group = Topics(PREFIX), f"{PREFIX}learn"
    fill(url, [encode_image(stream.record(i), "images") for i in range(IMAGES_LEFT)], PREFIX, PARTITIONS)
    patient = settings.model_copy(update={"session_timeout": 60.0})  # pieces of 8 MB, on a machine that has other work
    with closing(connect(url, patient)) as broker:
        identity = ClearingIdentity.of(Filters(settings.seed, settings.filters))
        run = LogIdentity(group, broker.topic_id(topics.images), identity, "", delta.width)
        history = History(broker, topics, run, delta, settings.publish_images)
        deltas = history.write(IMAGES // settings.publish_images)
        kinds, size = Counter[str](), 0
        sums = topics.sums(group)
        extent = broker.extents(sums.topic)[sums]
        for message in broker.read(sums, extent.first, extent.end):
            kinds[kind(message)] += dict(message.headers)["piece"].startswith(b"0/")
            size += len(message.value)
    flags = ("--topic-prefix", PREFIX, "--group", group, "--partitions", str(PARTITIONS))
    with learning(url, folder / "late", settings, *flags) as learner:
        at_work = learner.seconds_until("marketplace_at_work")
        predicted = learner.seconds_until("marketplace_images_total")
        summary = learner.stop()
    return {
        "images": deltas * settings.publish_images,
        "deltas_written": deltas,
        "records_left": dict(kinds),
        "bytes_left": size,
        "seconds_to_work": at_work,
        "seconds_to_predict": predicted,
        "settled_images": summary["settled_images"],
    }
