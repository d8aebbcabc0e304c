"""The learner ``marketplace``: Marketplace as published, and what makes it learn on a real stream."""

from dataclasses import replace

from pipeline.features import Backend, takes_blas
from pipeline.learners.marketplace.base import Base
from pipeline.learners.marketplace.network import Network, Shape
from pipeline.learners.marketplace.terms import PUBLISHED, STREAM, Terms
from pipeline.settings import Settings


def make(shape: Shape, backend: Backend = "auto") -> Network:
    """A network of this shape, computed by the backend."""
    if takes_blas(backend):
        from pipeline.learners.marketplace.blas import BlasNetwork

        return BlasNetwork(shape)
    from pipeline.learners.marketplace.tinygrad import TinygradNetwork

    return TinygradNetwork(shape)


TERMS = {"marketplace": STREAM, "marketplace-published": PUBLISHED}
"""The terms of each form of ``marketplace``, except for the seed."""


def beginning(name: str, settings: Settings) -> tuple[Base, Terms]:
    """The base and the terms of a new learner of this name. Raises SnapshotError if the base cannot be read."""
    base = Base.read(settings.base).fresh() if settings.base else Base.untrained(Shape(), settings.seed)
    return base, replace(TERMS[name], seed=settings.seed)
