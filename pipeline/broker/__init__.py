"""Brokers: one protocol, and ``connect``, which picks the implementation by URL."""

from urllib.parse import urlsplit

from pipeline.broker.protocol import (
    Broker,
    Consumer,
    Extent,
    Headers,
    Member,
    Message,
    Partition,
    Position,
    Producer,
    Record,
    Tail,
    Topic,
    Transaction,
)
from pipeline.errors import SettingsError
from pipeline.settings import Settings, load

__all__ = [
    "Broker",
    "Consumer",
    "Extent",
    "Headers",
    "Member",
    "Message",
    "Partition",
    "Position",
    "Producer",
    "Record",
    "Tail",
    "Topic",
    "Transaction",
    "connect",
]


def connect(url: str, settings: Settings | None = None) -> Broker:
    """Open ``sqlite:///FILE`` (three slashes and a relative path, four an absolute one), or ``kafka://HOST:PORT,...``.

    ``settings`` say how to log in and how large records are; None: what the environment says.

    Raises SettingsError for any other URL, StorageError if the file cannot be used, BrokerBusyError if no broker
    answers, BrokerError if it refuses the login.
    """
    match urlsplit(url).scheme:
        case "sqlite":
            from pipeline.broker.sqlite.broker import SqliteBroker

            return SqliteBroker.from_url(url)
        case "kafka":
            from pipeline.broker.kafka.broker import KafkaBroker

            return KafkaBroker(url, settings or load({}))
    raise SettingsError(f"broker {url!r}: no such kind of broker; write sqlite:///FILE or kafka://HOST:PORT")
