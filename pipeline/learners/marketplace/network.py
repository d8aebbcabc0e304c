"""The reference network of the articles, "beautiful MNIST": its specs, and how many numbers each one has.

    Conv(1,32,5) ReLU Conv(32,32,5) ReLU InstanceNorm MaxPool |
    Conv(32,64,3) ReLU Conv(64,64,3) ReLU InstanceNorm MaxPool Flatten |
    Linear(576,classes)

The parameters of a spec are one flat ``float32`` vector, and so is a vendor. The first two specs are ``Block``s, which
a backend computes. The last spec is 0.02% of the arithmetic. ``linear`` computes it in numpy, so that a new class needs
no compilation.

InstanceNorm: Ulyanov, Vedaldi, Lempitsky, Instance Normalization, 2016, with a scale and a shift for each channel.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

EPSILON = 1e-5
"""Added to the variance in InstanceNorm."""


@dataclass(frozen=True)
class Block:
    """Conv ReLU Conv ReLU InstanceNorm MaxPool: ``[n, side, side, channels]`` to ``[n, pooled, pooled, width]``."""

    side: int
    channels: int
    width: int
    kernel: int

    def __post_init__(self) -> None:
        if self.side - 2 * (self.kernel - 1) < 2:
            raise ValueError(
                f"a map of {self.side}×{self.side} is too small for two {self.kernel}×{self.kernel} layers"
            )

    @property
    def pooled(self) -> int:
        """Height and width of the maps that come out."""
        return (self.side - 2 * (self.kernel - 1)) // 2

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters, in their order in the flat vector; weights are ``[x, y, input, output]``."""
        k, c, w = self.kernel, self.channels, self.width
        return {
            "weights_1": (k, k, c, w),
            "bias_1": (w,),
            "weights_2": (k, k, w, w),
            "bias_2": (w,),
            "scale": (w,),
            "shift": (w,),
        }

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return sum(map(prod, self.parts.values()))

    def split(self, parameters: Floats) -> dict[str, Floats]:
        """Views of flat vectors ``[..., size]`` by the names of ``parts``. A tensor of tinygrad will do, too."""
        views, start = {}, 0
        for name, shape in self.parts.items():
            views[name] = parameters[..., start : start + prod(shape)].reshape(*parameters.shape[:-1], *shape)
            start += prod(shape)
        return views

    def initial(self, uniform: Floats) -> Floats:
        """Parameters to begin with, from ``size`` numbers in [-1, 1): U(-1/√fan-in, 1/√fan-in); scale 1, shift 0."""
        result = uniform.copy()
        parts = self.split(result)
        for layer, channels in (("1", self.channels), ("2", self.width)):
            bound = np.float32((self.kernel**2 * channels) ** -0.5)
            parts[f"weights_{layer}"] *= bound
            parts[f"bias_{layer}"] *= bound
        parts["scale"][:], parts["shift"][:] = 1, 0
        return result


@dataclass(frozen=True)
class Shape:
    """Sizes of the network. The defaults are the articles': 87,850 parameters at 10 classes."""

    side: int = 28
    widths: tuple[int, int] = (32, 64)
    kernels: tuple[int, int] = (5, 3)

    @cached_property
    def blocks(self) -> tuple[Block, Block]:
        """The specs before the last."""
        first = Block(self.side, 1, self.widths[0], self.kernels[0])
        return first, Block(first.pooled, self.widths[0], self.widths[1], self.kernels[1])

    @property
    def products(self) -> int:
        """D, the length of the last spec's input, the constant 1 included."""
        return self.blocks[1].pooled ** 2 * self.widths[1] + 1

    def sizes(self, classes: int) -> tuple[int, int, int]:
        """Parameters of each spec."""
        return self.blocks[0].size, self.blocks[1].size, classes * self.products


class Network(Protocol):
    """Computes the specs before the last."""

    @property
    def shape(self) -> Shape:
        """Sizes of the network."""

    def block(self, spec: int, parameters: Floats, products: Floats) -> Floats:
        """The output of V vendors of a spec, each for its own m images.

        All arrays are float32: ``parameters[V, size]`` and ``products[V, m, y, x, channels]`` to
        ``[V, m, y, x, channels]``. The output for an image does not depend on the images beside it.
        """


def pixels(images: NDArray[np.uint8]) -> Floats:
    """The input of the first spec: ``uint8[n, y, x]`` to ``float32[n, y, x, 1]``, 0 to 1."""
    return images[..., None] * np.float32(1 / 255)


def flatten(products: Floats) -> Floats:
    """The input of the last spec: ``[..., y, x, channels]`` to ``[..., D]``, with the constant 1 at the end."""
    flat = products.reshape(*products.shape[:-3], prod(products.shape[-3:]))
    return np.concatenate([flat, np.ones((*flat.shape[:-1], 1), np.float32)], axis=-1)


def linear(parameters: Floats, products: Floats) -> Floats:
    """Logits ``[m, C]``: ``parameters[C·D]``, class by class with the bias at the end, times ``products[m, D]``."""
    return products @ parameters.reshape(-1, products.shape[-1]).T
