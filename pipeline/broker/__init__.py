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
    Topic,
    Transaction,
)
from pipeline.errors import SettingsError

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
    "Topic",
    "Transaction",
    "connect",
]


def connect(url: str) -> Broker:
    """Open ``sqlite:///FILE`` (three slashes and a relative path, four and an absolute one).

    Raises SettingsError for any other URL, StorageError if the file cannot be used.
    """
    if urlsplit(url).scheme == "sqlite":
        from pipeline.broker.sqlite import SqliteBroker

        return SqliteBroker.from_url(url)
    raise SettingsError(f"broker {url!r}: no such kind of broker; write sqlite:///FILE")
