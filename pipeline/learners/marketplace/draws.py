"""What vendors draw. Everything random comes from Philox, and the same call always gives the same numbers.

Philox: Salmon, Moraes, Dror, Shaw, Parallel random numbers: as easy as 1, 2, 3, 2011. Only its raw bits are used:
they are the same in every version of numpy. The key is the seed and the purpose of the numbers. The counter is the
generation, the spec and the vendor. So a replay may draw in any order, and draws what was drawn before.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import hadamard

from pipeline.learners.marketplace.network import Floats, Shape


class Purpose(IntEnum):
    """What numbers are drawn for. Journals are replayed with these values, so never renumber them."""

    DELTA = 0
    PATH = 1
    SIGNS = 2
    UPSTREAM = 3
    INITIAL = 4
    IMAGES = 5


def raw(count: int, seed: int, purpose: Purpose, *counter: int) -> NDArray[np.uint64]:
    """``uint64[count]``, all bits random. Up to three numbers in ``counter`` tell the draws of a purpose apart."""
    words = [0, *counter, 0, 0, 0][:4]
    philox = np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=np.array(words, np.uint64))
    return philox.random_raw(count)


def uniform(count: int, seed: int, purpose: Purpose, *counter: int) -> Floats:
    """``float32[count]`` in [-1, 1), in steps of 2⁻²³."""
    words = raw(-(-count // 2), seed, purpose, *counter).view(np.uint32)[:count]
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)


def delta(size: int, seed: int, generation: int, spec: int, vendor: int) -> Floats:
    """What a vendor adds to its spec's parameters, in units of lr × probe: ``float32[size]`` in [-1, 1).

    Vendor 0 is the leader and adds nothing.
    """
    if vendor == 0:
        return np.zeros(size, np.float32)
    return uniform(size, seed, Purpose.DELTA, vendor, spec, generation)


def path(images: int, vendors: int, seed: int, generation: int, spec: int) -> NDArray[np.int64]:
    """The vendor of a spec that each image goes to: ``int64[images]``.

    The assignment is random, but all vendors get the same number of images, give or take one.
    """
    order = np.argsort(raw(images, seed, Purpose.PATH, 0, spec, generation), kind="stable")
    vendor = np.empty(images, np.int64)
    vendor[order] = np.arange(images) % vendors
    return vendor


def bids(images: int, pairs: int, classes: int, seed: int, generation: int) -> NDArray[np.int8]:
    """The bids ξ on outputs of the pairs of vendors that every image draws: ``int8[images, pairs, classes]``, ±1.

    The bids of an image are rows of a Hadamard matrix, with a random sign for every column. They are orthogonal if
    there are as many pairs as classes, rounded up to a power of two.
    """
    words = raw(images * -(-classes // 64), seed, Purpose.SIGNS, 0, 0, generation)
    bits = np.unpackbits(words.view(np.uint8).reshape(images, -1), axis=-1, count=classes)
    rows = hadamard(1 << (max(pairs, classes, 1) - 1).bit_length(), dtype=np.int8)[:pairs, :classes]
    return rows * (2 * bits.view(np.int8) - np.int8(1))[:, None]


def upstream(paths: int, sample: int, seed: int, generation: int, spec: int, vendor: int) -> NDArray[np.int64]:
    """Which ``sample`` of the paths that lead to a spec are offered to a vendor: ``int64[sample]``, in order."""
    order = np.argsort(raw(paths, seed, Purpose.UPSTREAM, vendor, spec, generation), kind="stable")
    return np.sort(order[:sample])


def initial(shape: Shape, seed: int) -> tuple[Floats, Floats, Floats]:
    """Random parameters of the three specs; the last is empty, as there is no class yet."""
    blocks = [
        block.initial(uniform(block.size, seed, Purpose.INITIAL, spec)) for spec, block in enumerate(shape.blocks)
    ]
    return blocks[0], blocks[1], np.zeros(0, np.float32)
