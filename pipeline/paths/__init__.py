"""The learner ``paths``: Marketplace as published, and what makes it learn on a real stream."""

from pipeline.paths.network import Network, Shape
from pipeline.trunk import Backend


def make(shape: Shape, backend: Backend = "auto") -> Network:
    """What computes the blocks of a network: with ``auto``, BLAS where tinygrad would compute on the CPU too."""
    from pipeline.trunk.device import default_device

    if backend == "blas" or (backend == "auto" and default_device() == "CPU"):
        from pipeline.paths.blas import BlasNetwork

        return BlasNetwork(shape)
    from pipeline.paths.device import DeviceNetwork

    return DeviceNetwork(shape)
