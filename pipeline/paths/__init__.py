"""The learner ``paths``: Marketplace as published, and what makes it learn on a real stream."""

from pipeline.paths.network import Network, Shape
from pipeline.trunk import Backend, takes_blas


def make(shape: Shape, backend: Backend = "auto") -> Network:
    """What computes the blocks of a network."""
    if takes_blas(backend):
        from pipeline.paths.blas import BlasNetwork

        return BlasNetwork(shape)
    from pipeline.paths.device import DeviceNetwork

    return DeviceNetwork(shape)
