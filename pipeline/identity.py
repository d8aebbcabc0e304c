"""What must agree between everything that shares sums: learners, snapshots, the journal."""

import hashlib
from dataclasses import asdict, dataclass

from pipeline.house import PRIOR
from pipeline.trunk.filters import Filters

PREPROCESSING = "grey-28x28-uint8-1"
SCHEMA = 1


@dataclass(frozen=True)
class Identity:
    """The named parts of an identity, all of them text."""

    trunk: str
    seed: str
    filters: str
    loss: str
    preprocessing: str = PREPROCESSING
    prior: str = repr(PRIOR)
    schema: str = str(SCHEMA)

    @classmethod
    def of(cls, filters: Filters, loss: str) -> "Identity":
        """The identity of a learner with these filters and the loss of this name."""
        return cls(filters.digest(), str(filters.seed), str(filters.count), loss)

    @property
    def digest(self) -> str:
        """SHA-256 of all parts, in hexadecimal."""
        text = "\n".join(f"{name}={part}" for name, part in sorted(asdict(self).items()))
        return hashlib.sha256(text.encode()).hexdigest()

    def difference(self, other: "Identity") -> str:
        """What differs, for a person: ``seed 0 is not 1, ...``; empty if nothing does."""
        mine, others = asdict(self), asdict(other)
        return ", ".join(f"{name} {mine[name]} is not {others[name]}" for name in mine if mine[name] != others[name])
