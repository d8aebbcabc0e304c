"""The network's blocks in tinygrad, for any device that tinygrad knows."""

from collections.abc import Callable

import numpy as np
from tinygrad import Context, Tensor, TinyJit

from pipeline.features.tinygrad import default_device
from pipeline.learners.marketplace.network import EPSILON, Block, Floats, Shape


def _convolution(maps: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """Convolution, bias and ReLU, each vendor on its images: ``maps[m, V·c, y, x]``, ``weights[V, x, y, c, w]``."""
    vendors, _, _, channels, width = weights.shape
    kernels = weights.permute(0, 4, 3, 2, 1).reshape(vendors * width, channels, *weights.shape[1:3])
    return maps.conv2d(kernels, bias.flatten(), groups=vendors).relu()


def _normalised(maps: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """InstanceNorm of ``maps[m, V·c, y, x]``."""
    centred = maps - maps.mean((2, 3), keepdim=True)
    factor = (centred.square().mean((2, 3), keepdim=True) + EPSILON).rsqrt()
    return centred * factor * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


def _block(block: Block, parameters: Tensor, products: Tensor) -> Tensor:
    """``parameters[V, size]``, ``products[V, m, y, x, c]`` to ``[V, m, y, x, w]``."""
    vendors, images, side = products.shape[:3]
    with Context(WINO=0):
        parts = block.split(parameters)
        maps = products.permute(1, 0, 4, 2, 3).reshape(images, -1, side, side)
        maps = _convolution(maps, parts["weights_1"], parts["bias_1"])
        maps = _convolution(maps, parts["weights_2"], parts["bias_2"])
        pooled = _normalised(maps, parts["scale"], parts["shift"]).max_pool2d(2)
        by_vendor = pooled.reshape(images, vendors, block.width, block.pooled, block.pooled)
        return by_vendor.permute(1, 0, 3, 4, 2).contiguous().realize()


class TinygradNetwork:
    """Computes the blocks of a network.

    Compiles once for every number of vendors and of images that it meets. Images are padded to a power of two, so that
    few numbers come.
    """

    def __init__(self, shape: Shape) -> None:
        default_device()
        self.shape = shape
        self._compiled: dict[tuple[int, ...], Callable[[Tensor, Tensor], Tensor]] = {}

    def block(self, spec: int, parameters: Floats, products: Floats) -> Floats:
        images = products.shape[1]
        padding = (1 << max(0, images - 1).bit_length()) - images
        padded = np.pad(products, [(0, 0), (0, padding), (0, 0), (0, 0), (0, 0)])
        place = (spec, *padded.shape[:2])
        if place not in self._compiled:
            block = self.shape.blocks[spec]
            self._compiled[place] = TinyJit(lambda p, x: _block(block, p, x))
        made: Floats = self._compiled[place](Tensor(parameters).realize(), Tensor(padded).realize()).numpy()
        return made[:, :images]
