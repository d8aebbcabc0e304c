"""The baseline ``backprop``: the reference network trained online, by tinygrad's own gradients.

One step of SGD, or of Adam, for each micro-batch, on the mean cross-entropy of its labelled images. A class has an
output from the start, which is named when the class is first seen; it is not predicted before.

tinygrad's CPU kernels run on one core, and the slopes of its ``conv2d`` at a quarter of the speed of its products of
matrices. So learning lays the windows out, twice as fast as a step through ``conv2d``; predicting does not, where
laying out would cost more than it saves. (A search for better kernels, ``BEAM``, had not finished after ten minutes.)

Adam: Kingma, Ba, Adam: A method for stochastic optimization, 2015.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tinygrad import Context, Tensor, TinyJit
from tinygrad.nn.optim import SGD, Adam, Optimizer

from benchmarks.learners.labelled import Labelled, Quoted
from pipeline.features.tinygrad import default_device
from pipeline.learners.marketplace import draws
from pipeline.learners.marketplace.network import EPSILON, Floats, Shape

OUTPUTS = 20
"""Classes that can be learnt."""

Rule = Literal["sgd", "adam"]

RULES: dict[Rule, Callable[[list[Tensor]], Optimizer]] = {
    "sgd": lambda parameters: SGD(parameters, lr=0.05),
    "adam": lambda parameters: Adam(parameters, lr=1e-3),
}


class Backprop:
    """A network with ``OUTPUTS`` outputs and an optimiser.

    Compiles for exactly ``batch_size`` images; fewer are padded, more are cut up, and each piece is a step.
    """

    def __init__(self, rule: Rule, seed: int, shape: Shape | None = None, batch_size: int = 256) -> None:
        default_device()
        self._shape, self._batch_size = shape or Shape(), batch_size
        self._blocks, self._last = parameters(self._shape, seed)
        self._optimiser = RULES[rule]([*(p for block in self._blocks for p in block.values()), self._last])
        self._forward = TinyJit(lambda images: self._logits(images, _direct).realize())
        self._learn = TinyJit(self._step)
        self.classes: tuple[str, ...] = ()
        self.images = 0
        self.generation = 0

    @property
    def state_bytes(self) -> int:
        """Bytes of parameters and of the optimiser's moments."""
        kept = [*self._optimiser.params, *getattr(self._optimiser, "m", []), *getattr(self._optimiser, "v", [])]
        return sum(int(tensor.nbytes()) for tensor in kept)

    def parameters(self) -> list[Floats]:
        """Every parameter, in the order of ``Block.parts``, the last spec at the end."""
        return [p.numpy() for p in self._optimiser.params]

    def quote(self, images: NDArray[np.uint8]) -> Quoted:
        """Forward only: ``uint8[n, side, side]``."""
        logits = [self._forward(self._padded(images[some])).numpy() for some in self._pieces(len(images))]
        every = np.concatenate([np.zeros((0, OUTPUTS), np.float32), *logits])[: len(images)]
        return Quoted(images, every[:, : len(self.classes)], self.classes)

    def settle(self, quotes: Quoted, labels: Sequence[str | None]) -> Labelled:
        """The labelled images: gradients are taken when they are added. Changes nothing."""
        return quotes.labelled(labels)

    def add(self, update: Labelled) -> None:
        """Step down the gradient. Raises ValueError if there are more classes than outputs."""
        classes = tuple(dict.fromkeys([*self.classes, *update.labels]))
        if len(classes) > OUTPUTS:
            raise ValueError(f"{len(classes)} classes, but backprop has {OUTPUTS} outputs")
        self.classes = classes
        targets = np.eye(OUTPUTS, dtype=np.float32)[[classes.index(label) for label in update.labels]]
        for some in self._pieces(len(update.rows)):
            share = self._padded(targets[some] / len(targets[some]))
            with Context(TRAINING=1):
                self._learn(self._padded(update.rows[some]), share)
            self.generation += 1
        self.images += len(update.rows)

    def clear(self) -> bool:
        """The step was taken already."""
        return False

    def _pieces(self, count: int) -> list[slice]:
        return [slice(start, start + self._batch_size) for start in range(0, count, self._batch_size)]

    def _padded(self, rows: NDArray[np.generic]) -> Tensor:
        """A piece and zeros up to ``batch_size``: an image of zeros with a target of zeros has no gradient."""
        padded = np.zeros((self._batch_size, *rows.shape[1:]), np.float32)
        padded[: len(rows)] = rows
        return Tensor(padded).realize()

    def _logits(self, images: Tensor, convolved: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        maps = images.unsqueeze(1) * (1 / 255)
        for block in self._blocks:
            for layer in "12":
                bias = block[f"bias_{layer}"].reshape(1, -1, 1, 1)
                maps = (convolved(maps, block[f"weights_{layer}"]) + bias).relu()
            maps = _normalised(maps, block["scale"], block["shift"]).max_pool2d(2)
        return maps.permute(0, 2, 3, 1).flatten(1).linear(self._last[:-1], self._last[-1])

    def _step(self, images: Tensor, share: Tensor) -> None:
        """``share`` is the one-hot label of each image, divided by how many images there are."""
        self._optimiser.zero_grad()
        (-(self._logits(images, _laid_out).log_softmax() * share).sum()).backward()
        self._optimiser.step()


def parameters(shape: Shape, seed: int) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Parameters as a new ``marketplace`` draws them; weights ``[output, input, y, x]``; and a last spec of zeros."""
    blocks = [
        {name: Tensor(np.ascontiguousarray(part.T)).realize() for name, part in block.split(flat).items()}
        for block, flat in zip(shape.blocks, draws.initial(shape, seed), strict=False)
    ]
    return blocks, Tensor(np.zeros((shape.products, OUTPUTS), np.float32)).realize()


def _direct(maps: Tensor, weights: Tensor) -> Tensor:
    """Convolution of ``maps[n, c, y, x]`` with ``weights[w, c, k, k]``."""
    return maps.conv2d(weights)


def _laid_out(maps: Tensor, weights: Tensor) -> Tensor:
    """The same as a product of matrices for each image, so that the slopes are products of matrices too."""
    n, k = maps.shape[0], weights.shape[2]
    windows = maps.unfold(2, k, 1).unfold(3, k, 1).permute(0, 1, 4, 5, 2, 3)
    side = windows.shape[4]
    columns = windows.reshape(n, -1, side * side).contiguous().contiguous_backward()
    matrices = weights.reshape(1, len(weights), -1).expand(n, -1, -1).contiguous_backward()
    return (matrices @ columns).reshape(n, len(weights), side, side)


def _normalised(maps: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """InstanceNorm of ``maps[n, c, y, x]``."""
    centred = maps - maps.mean((2, 3), keepdim=True)
    factor = (centred.square().mean((2, 3), keepdim=True) + EPSILON).rsqrt()
    return centred * factor * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)
