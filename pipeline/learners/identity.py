"""Identities: what learners, snapshots and journals must agree on before they share what was learnt."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import orjson

from pipeline.features.filters import Filters
from pipeline.learners.clearing.solver import PRIOR
from pipeline.learners.marketplace.terms import Terms

PREPROCESSING = "grey-28x28-uint8-1"
SCHEMA = 1

LOSS = "squared"
"""The loss of groups. With another one, targets depend on the order of the stream, and sums cannot be added up."""


@dataclass(frozen=True)
class Identity:
    """Named parts, all of them text. Equal parts mean that what was learnt may be shared."""

    learner: ClassVar[str]

    @property
    def digest(self) -> str:
        """SHA-256 of all parts, in hexadecimal."""
        text = "\n".join(f"{name}={part}" for name, part in sorted(asdict(self).items()))
        return hashlib.sha256(text.encode()).hexdigest()

    def named(self) -> dict[str, Any]:
        """The parts by the names that messages use."""
        return asdict(self)

    def difference(self, other: "Identity") -> str:
        """What differs, for a person: ``seed 0 is not 1, ...``; empty if nothing does."""
        if self.learner != other.learner:
            return f"learner {self.learner} is not {other.learner}"
        mine, others = self.named(), other.named()
        return ", ".join(f"{name} {mine[name]} is not {others[name]}" for name in mine if mine[name] != others[name])


@dataclass(frozen=True)
class ClearingIdentity(Identity):
    """The identity of ``clearing``."""

    learner: ClassVar[str] = "clearing"
    trunk: str  # what the features are called in snapshots and in the group's log
    seed: str
    filters: str
    loss: str
    preprocessing: str = PREPROCESSING
    prior: str = repr(PRIOR)
    schema: str = str(SCHEMA)

    @classmethod
    def of(cls, filters: Filters, loss: str = LOSS) -> "ClearingIdentity":
        """The identity of a learner with these filters and the loss of this name."""
        return cls(filters.digest(), str(filters.seed), str(filters.count), loss)


@dataclass(frozen=True)
class MarketplaceIdentity(Identity):
    """The identity of ``marketplace``. ``base`` is the digest of its base, ``terms`` are JSON without the seed."""

    learner: ClassVar[str] = "marketplace"
    base: str
    seed: str
    terms: str
    loss: str = "cross_entropy"
    preprocessing: str = PREPROCESSING
    schema: str = str(SCHEMA)

    @classmethod
    def of(cls, base: str, terms: Terms) -> "MarketplaceIdentity":
        """The identity of a learner with these terms that began with a base of this digest."""
        parts = {name: part for name, part in asdict(terms).items() if name != "seed"}
        return cls(base, str(terms.seed), orjson.dumps(parts).decode())

    def named(self) -> dict[str, Any]:
        return {**asdict(self), "terms": "", **orjson.loads(self.terms)}


def identity_of(parts: Mapping[str, str]) -> ClearingIdentity | MarketplaceIdentity:
    """The identity with these parts, as ``asdict`` gives them. Raises TypeError if no identity has such parts."""
    kind = (
        MarketplaceIdentity
        if {field.name for field in fields(MarketplaceIdentity)} == parts.keys()
        else ClearingIdentity
    )
    return kind(**parts)
