"""How brokers of Kafka are reached: addresses, login, patience; and the client library's errors as ours."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kafka import errors

from pipeline.broker.kafka import patches
from pipeline.errors import (
    BrokerBusyError,
    BrokerError,
    FencedError,
    RecordTooLargeError,
    SettingsError,
    StorageError,
    TopicError,
)
from pipeline.settings import Settings

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

ANSWER_SECONDS = 15.0
"""How long one step may take before the broker counts as out of reach."""

ATTEMPT_SECONDS = 3.0
AGAIN_SECONDS = 0.05
SHORTEST_WAIT, LONGEST_WAIT = 0.5, 5.0

_ADDRESS = r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}"

_LOGIN = (errors.SaslAuthenticationFailedError, errors.UnsupportedSaslMechanismError)
_PASSING = (errors.RetriableError, errors.UnknownBrokerIdError)  # the second one: a partition without a leader
_TOPIC = (errors.UnknownTopicOrPartitionError, errors.UnknownTopicIdError, errors.InvalidTopicError)

_TRANSLATIONS: list[tuple[tuple[type[errors.KafkaError], ...], type[BrokerError], str]] = [
    (
        (
            errors.ProducerFencedError,
            errors.InvalidProducerEpochError,
            errors.InvalidProducerIdMappingError,
            errors.InvalidTxnStateError,
            errors.CommitFailedError,
            errors.IllegalGenerationError,
            errors.UnknownMemberIdError,
            errors.RebalanceInProgressError,
        ),
        FencedError,
        "another process took over, or the transaction was open for too long; nothing of it was written; start anew "
        "from the committed positions",
    ),
    (
        (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError),
        RecordTooLargeError,
        "raise the topic's max.message.bytes, and record_bytes for new topics",
    ),
    (_TOPIC, TopicError, "check name and prefix, or start its producer first"),
    (
        (
            errors.KafkaStorageError,
            errors.LogDirNotFoundError,
            errors.CorruptRecordError,
            errors.LogTruncationError,
        ),
        StorageError,
        "look at the broker's disks and log",
    ),
    ((errors.AuthorizationError,), BrokerError, "give this user the right to do it"),
    (_LOGIN, BrokerError, "check user name, password and mechanism"),
    (_PASSING, BrokerBusyError, "try again, or start the broker"),
    ((errors.KafkaError,), BrokerError, "look at the broker's log"),
]
"""The library's errors, ours, and what to do about them: the first that fits."""


class Connection:
    """The addresses in ``kafka://HOST:PORT[,HOST:PORT...]``, and how to log in there.

    Raises SettingsError if that is no such URL, or half a login.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        found = re.fullmatch(rf"kafka://({_ADDRESS}(?:,{_ADDRESS})*)", url)
        if not found:
            raise SettingsError(f"broker {url!r}: write kafka://HOST:PORT, or several HOST:PORT with commas between")
        if settings.kafka_ca_file is not None and not settings.kafka_ca_file.is_file():
            raise SettingsError(
                f"kafka_ca_file {settings.kafka_ca_file}: no such file; give one with certificates in PEM"
            )
        self.url = url
        self._configs: dict[str, object] = {
            "bootstrap_servers": found[1].split(","),
            "client_id": "marketstream",
            "request_timeout_ms": 10_000,
            "reconnect_backoff_max_ms": 1_000,
            "security_protocol": settings.kafka_security_protocol,
            "ssl_cafile": None if settings.kafka_ca_file is None else str(settings.kafka_ca_file),
        }
        if settings.kafka_security_protocol.startswith("SASL"):
            if settings.kafka_username is None or settings.kafka_password is None:
                raise SettingsError(
                    f"{settings.kafka_security_protocol} needs a login: set kafka_username and kafka_password"
                )
            self._configs |= {
                "sasl_mechanism": settings.kafka_sasl_mechanism,
                "sasl_plain_username": settings.kafka_username,
                "sasl_plain_password": settings.kafka_password.get_secret_value(),
            }

    def make(self, kind: Any, patience: float | None = None, **configs: object) -> Any:
        """A client of kafka-python, connected. ``kind`` is its class.

        Tries again for ``patience`` seconds (default: ATTEMPT_SECONDS), with longer and longer waits. Raises
        BrokerBusyError if nobody answers, BrokerError if the login is refused.
        """
        patience = ATTEMPT_SECONDS if patience is None else patience
        deadline, wait = time.monotonic() + patience, SHORTEST_WAIT
        patches.failures.refused = ""
        while True:
            patches.failures.last = ""
            try:
                with self.translating("connecting"):
                    milliseconds = int(1000 * ATTEMPT_SECONDS)
                    return patches.make_client(kind, bootstrap_timeout_ms=milliseconds, **self._configs, **configs)
            except BrokerBusyError:
                reason = patches.failures.last or "no answer"
            if refused := patches.failures.refused:
                raise BrokerError(
                    f"{self.url}: the login was refused ({refused}); check user name, password, mechanism"
                )
            if time.monotonic() + wait > deadline:
                raise BrokerBusyError(
                    f"{self.url}: no Kafka answered within {patience:g} s ({reason}, with "
                    f"{self._configs['security_protocol']}); check address, port and login, start the broker, or set "
                    "kafka_security_protocol"
                )
            log.warning("%s does not answer (%s); trying again in %.1f s", self.url, reason, wait)
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def ask(self, doing: str, question: Callable[[], Answer]) -> Answer:
        """The answer to a question that may be asked again: so it is, while brokers come and go.

        Raises BrokerBusyError after ANSWER_SECONDS, and the library's other errors as ours.
        """
        deadline = time.monotonic() + ANSWER_SECONDS
        with self.translating(doing):
            while True:
                try:
                    return question()
                except _PASSING as error:
                    if isinstance(error, _TOPIC) or time.monotonic() > deadline:
                        raise
                    time.sleep(AGAIN_SECONDS)

    @contextmanager
    def translating(self, doing: str) -> Iterator[None]:
        """Raise the library's errors as ours."""
        try:
            yield
        except errors.KafkaError as error:
            raise self.translated(error, doing) from error

    def translated(self, error: errors.KafkaError, doing: str) -> BrokerError:
        """The error to raise; nothing that was asked for was done."""
        ours, advice = next((ours, advice) for kinds, ours, advice in _TRANSLATIONS if isinstance(error, kinds))
        return ours(f"{self.url}: {doing}: {error}; {advice}")
