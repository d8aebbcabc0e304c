"""Every error that marketstream raises on purpose.

MarketstreamError          what was wrong, where, and what to do about it, in one line
├── SettingsError          a flag, an environment variable or a combination of them
├── DatasetError           a data set that cannot be found, fetched or trusted
├── ScenarioError          a scenario file: says file, line and key
├── RecordError            an image record that cannot be read: becomes a dead letter
├── SnapshotError          a snapshot that is damaged or is of another identity
├── RecoveryError          stream and snapshots do not fit together
├── SumsError              a record of ``sums`` that is damaged, or was learnt by a learner that differs
├── SolverError            sums that no images add up to
├── OutOfStepError         a record of ``sums`` that does not follow what was read: begin anew
└── BrokerError            the broker
    ├── TopicError         a topic that is missing or does not fit
    ├── GroupBusyError     a consumer group that has its consumer already
    ├── FencedError        another process took over this transactional id
    ├── RecordTooLargeError
    ├── BrokerBusyError    locked or out of reach, nothing was written: trying again may help
    ├── OutcomeUnknownError  a commit of which it is not known whether it happened
    └── StorageError       full, read-only or corrupt: trying again does not help
"""


class MarketstreamError(Exception):
    """Root of the tree. Command-line programs print its text after ``error:`` and exit with 1."""


class SettingsError(MarketstreamError):
    """A setting that is missing, unknown or out of range."""


class DatasetError(MarketstreamError):
    """A data set that cannot be found, fetched or trusted."""


class ScenarioError(MarketstreamError):
    """A scenario that cannot be read or asks for the impossible."""


class RecordError(MarketstreamError):
    """An image record that cannot be read.

    Attributes
    ----------
    reason
        A word from a small fixed set, fit for a metric label.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class SnapshotError(MarketstreamError):
    """A snapshot that is damaged, of another version or of another identity."""


class RecoveryError(MarketstreamError):
    """The stream and what was learnt from it do not fit together."""


class SumsError(MarketstreamError):
    """A record of ``sums`` that is damaged, or is of another group or identity."""


class SolverError(MarketstreamError):
    """Sums that no images add up to: no weights can be made of them."""


class OutOfStepError(MarketstreamError):
    """A record of ``sums`` that does not fit to what was read before it: begin again, with the newest checkpoint."""


class BrokerError(MarketstreamError):
    """Something that the broker refused or could not do."""


class TopicError(BrokerError):
    """A topic that does not exist or does not fit."""


class GroupBusyError(BrokerError):
    """The consumer group already has the one consumer that it can have."""


class FencedError(BrokerError):
    """Another process took over: nothing of this transaction was written."""


class RecordTooLargeError(BrokerError):
    """One record is larger than the broker takes."""


class BrokerBusyError(BrokerError):
    """The broker is locked or out of reach for now. Nothing of an open transaction was written."""


class OutcomeUnknownError(BrokerError):
    """The connection was lost in a commit. A new producer settles what became of it; then look at the positions."""


class StorageError(BrokerError):
    """The storage is full, read-only or corrupt."""
