"""The published algorithm written down once more, slowly and plainly, an image and a number at a time, in float64."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.learners.marketplace.network import Shape

Doubles = NDArray[np.float64]


def convolve(image: Doubles, weights: Doubles, bias: Doubles) -> Doubles:
    """``[y, x, c]`` with ``[x, y, c, w]``, no padding, then ReLU."""
    k = weights.shape[0]
    side = image.shape[0] - k + 1
    result = np.empty((side, side, weights.shape[3]))
    for y in range(side):
        for x in range(side):
            window = image[y : y + k, x : x + k].transpose(1, 0, 2)
            result[y, x] = np.tensordot(window, weights, 3) + bias
    return np.maximum(result, 0)


def block(image: Doubles, parameters: Doubles, kernel: int, width: int) -> Doubles:
    """Conv ReLU Conv ReLU InstanceNorm MaxPool of ``[y, x, c]``."""
    parts = list(parameters)

    def take(*shape: int) -> Doubles:
        count = math.prod(shape)
        taken = np.array(parts[:count]).reshape(shape)
        del parts[:count]
        return taken

    maps = convolve(image, take(kernel, kernel, image.shape[2], width), take(width))
    maps = convolve(maps, take(kernel, kernel, width, width), take(width))
    scale, shift = take(width), take(width)
    assert not parts
    for channel in range(width):
        one = maps[:, :, channel]
        maps[:, :, channel] = (one - one.mean()) / math.sqrt(one.var() + 1e-5) * scale[channel] + shift[channel]
    side = maps.shape[0] // 2
    cells = [[maps[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].max(axis=(0, 1)) for x in range(side)] for y in range(side)]
    return np.array(cells)


def products(shape: Shape, specs: Sequence[Doubles], image: NDArray[np.uint8]) -> Doubles:
    """``uint8[y, x]`` through the first two of ``specs``, to what the last one is offered."""
    maps = image[:, :, None] / 255.0
    for spec in range(2):
        maps = block(maps, specs[spec], shape.kernels[spec], shape.widths[spec])
    return np.append(maps.ravel(), 1.0)


def logits(z: Doubles, last: Doubles) -> Doubles:
    """The last spec: class by class, bias last."""
    return np.array([float(row @ z) for row in last.reshape(-1, len(z))])


def loss(h: Doubles, label: int) -> float:
    """Cross-entropy."""
    return float(math.log(sum(math.exp(x - h.max()) for x in h)) + h.max() - h[label])


def outcomes(losses: Sequence[float]) -> list[float]:
    """z of paths."""
    mean = sum(losses) / len(losses)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in losses) / len(losses))
    return [-(x - mean) / deviation for x in losses]


def weights(labels: Sequence[str], before: Mapping[str, int]) -> list[float]:
    """Inversely proportional to how often a label has come, now and before; the largest is 1."""
    often = {label: before.get(label, 0) + list(labels).count(label) for label in {*labels, *before}}
    return [min(often.values()) / often[label] for label in labels]


def step(
    deltas: Sequence[Sequence[Doubles]], paths: Sequence[Sequence[int]], z: Sequence[float], unit: str, lr: float
) -> list[Doubles]:
    """What is added to each spec: ``deltas[spec][vendor]``, ``paths[i]`` the vendors of path i, spec by spec."""
    directions = [np.zeros_like(spec[0]) for spec in deltas]
    sizes = [0.0] * len(deltas)
    for path, outcome in zip(paths, z, strict=True):
        for spec, vendor in enumerate(path):
            directions[spec] += outcome * deltas[spec][vendor]
            sizes[spec] += abs(outcome) * math.sqrt((deltas[spec][vendor] ** 2).sum())
    for direction, size in zip(directions, sizes, strict=True):
        direction[:] = direction if math.sqrt((direction**2).sum()) > 1e-9 * size else 0.0  # rounding is no direction
    lengths = [math.sqrt((d**2).sum()) for d in directions]
    whole = math.sqrt(sum(length**2 for length in lengths))
    return [
        lr * d / (whole if unit == "whole" else length) if length else d
        for d, length in zip(directions, lengths, strict=True)
    ]


def slope(h: Doubles, label: int, bids: NDArray[np.int8]) -> Doubles:
    """ê from an image's pairs of vendors on outputs."""
    result = np.zeros_like(h)
    for bid in bids:
        result += bid * (loss(h + bid, label) - loss(h - bid, label)) / 2
    return result / len(bids)
