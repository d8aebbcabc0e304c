"""The network's blocks in numpy: every convolution is a few large products of matrices, for CPUs."""

import threading

import numpy as np

from pipeline.cores import each
from pipeline.learners.marketplace.network import EPSILON, Block, Floats, Shape

CHUNK = 8
"""Images that one thread computes at a time: few enough for its cache, many enough for Python to be no burden."""


class _Convolution:
    """Convolution, bias and ReLU of ``CHUNK`` maps, in memory of its own.

    The rows of the maps are copied k times, so that the k·k·c numbers under a window lie side by side, columns first.
    Every k-th window then begins where the one before ends. So k products of matrices compute all windows, and nothing
    else is copied.
    """

    def __init__(self, side: int, channels: int, kernel: int, width: int) -> None:
        self._out_side, self._kernel = side - kernel + 1, kernel
        count = CHUNK * self._out_side * side
        turns = -(-count // kernel)
        flat = np.zeros((turns + 1) * kernel * kernel * channels, np.float32)
        self._rows = flat[: count * kernel * channels].reshape(CHUNK, self._out_side, side, kernel, channels)
        window = kernel * kernel * channels
        starts = range(0, window, kernel * channels)
        self._windows = [flat[start:][: turns * window].reshape(turns, window) for start in starts]
        self._out = np.empty((turns, kernel, width), np.float32)
        self._maps = self._out.reshape(-1, width)[:count].reshape(CHUNK, self._out_side, side, width)

    def __call__(self, maps: Floats, weights: Floats, bias: Floats) -> Floats:
        """Up to CHUNK ``maps[n, side, side, c]`` to ``[CHUNK, out, out, width]``, in the same memory every time."""
        for y in range(self._kernel):
            self._rows[: len(maps), :, :, y] = maps[:, y : y + self._out_side]
        matrix = weights.reshape(-1, weights.shape[-1])
        for turn, windows in enumerate(self._windows):
            np.matmul(windows, matrix, out=self._out[:, turn])
        np.add(self._out, bias, out=self._out)
        np.maximum(self._out, 0, out=self._out)
        return self._maps[:, :, : self._out_side]


class _Workspace:
    """One thread's memory for one block."""

    def __init__(self, block: Block) -> None:
        inner = block.side - block.kernel + 1
        self.first = _Convolution(block.side, block.channels, block.kernel, block.width)
        self.second = _Convolution(inner, block.width, block.kernel, block.width)


class _Workspaces(threading.local):
    """Each thread's memory, by spec. To allocate it each time would cost as much as to fill it."""

    def __init__(self) -> None:
        self.of: dict[int, _Workspace] = {}


class BlasNetwork:
    """Computes the blocks of a network on all cores."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._spaces = _Workspaces()

    def block(self, spec: int, parameters: Floats, products: Floats) -> Floats:
        block = self.shape.blocks[spec]
        vendors, images = products.shape[:2]
        result = np.empty((vendors, images, block.pooled, block.pooled, block.width), np.float32)
        parts = [block.split(vendor) for vendor in parameters]

        def work(place: tuple[int, int]) -> None:
            vendor, start = place
            some = slice(start, start + CHUNK)
            self._chunk(spec, parts[vendor], products[vendor, some], result[vendor, some])

        each(work, [(vendor, start) for vendor in range(vendors) for start in range(0, images, CHUNK)])
        return result

    def _chunk(self, spec: int, parts: dict[str, Floats], maps: Floats, out: Floats) -> None:
        space = self._space(spec)
        first = space.first(maps, parts["weights_1"], parts["bias_1"])
        second = space.second(first, parts["weights_2"], parts["bias_2"])[: len(maps)]
        out[:] = _pooled(_normalised(second, parts["scale"], parts["shift"]), out.shape[1])

    def _space(self, spec: int) -> _Workspace:
        if spec not in self._spaces.of:
            self._spaces.of[spec] = _Workspace(self.shape.blocks[spec])
        return self._spaces.of[spec]


def _normalised(maps: Floats, scale: Floats, shift: Floats) -> Floats:
    """InstanceNorm of ``maps[n, y, x, c]``."""
    centred: Floats = maps - maps.mean(axis=(1, 2), keepdims=True)
    variance = np.square(centred).mean(axis=(1, 2), keepdims=True)
    centred *= scale / np.sqrt(variance + np.float32(EPSILON))
    centred += shift
    return centred


def _pooled(maps: Floats, side: int) -> Floats:
    """MaxPool of 2×2 of ``[n, y, x, c]``."""
    even = maps[:, : 2 * side, : 2 * side]
    rows = np.maximum(even[:, ::2], even[:, 1::2])
    return np.maximum(rows[:, :, ::2], rows[:, :, 1::2])
