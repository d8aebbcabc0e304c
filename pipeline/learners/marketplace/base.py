"""Base models: what a run of ``marketplace`` begins with or has become, as a safetensors file."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pipeline.errors import SnapshotError
from pipeline.learners.marketplace import draws
from pipeline.learners.marketplace.network import Floats, Shape

VERSION = 1
SPECS = ("spec_0", "spec_1", "spec_2")
PRODUCTS = "products"


@dataclass(frozen=True, eq=False)
class Base:
    """A network, and what it learnt from so far.

    Parameters
    ----------
    shape
        Sizes of the network.
    parameters
        A vector ``float32`` for each spec.
    classes
        The C names.
    generation
        Updates so far; 0 where a stream is to begin.
    counts
        Images of each label in these updates.
    products
        Sum of the products of these images, ``float64[D]``.

    Raises
    ------
    ValueError
        If the sizes do not fit the shape.
    """

    shape: Shape
    parameters: tuple[Floats, Floats, Floats]
    classes: tuple[str, ...]
    generation: int
    counts: Mapping[str, int]
    products: NDArray[np.float64]

    def __post_init__(self) -> None:
        sizes = (*(part.size for part in self.parameters), self.products.size)
        expected = (*self.shape.sizes(len(self.classes)), self.shape.products)
        if sizes != expected:
            raise ValueError(f"{sizes} numbers, not {expected}")

    @classmethod
    def of(cls, shape: Shape, parameters: tuple[Floats, Floats, Floats], classes: tuple[str, ...] = ()) -> "Base":
        """A base for the beginning of a stream."""
        return cls(shape, parameters, classes, 0, {}, np.zeros(shape.products))

    @classmethod
    def untrained(cls, shape: Shape, seed: int) -> "Base":
        """A base with random parameters that knows no class."""
        return cls.of(shape, draws.initial(shape, seed))

    def fresh(self) -> "Base":
        """The same network, for the beginning of a new stream."""
        return Base.of(self.shape, self.parameters, self.classes)

    @property
    def digest(self) -> str:
        """SHA-256 of everything but the shape, in hexadecimal."""
        about = [self.classes, self.generation, sorted(self.counts.items())]
        sha = hashlib.sha256(orjson.dumps(about))
        for part in (*self.parameters, self.products):
            sha.update(part.astype(part.dtype.newbyteorder("<")).tobytes())
        return sha.hexdigest()

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """The part that a file holds as tensors."""
        return {**dict(zip(SPECS, self.parameters, strict=True)), PRODUCTS: self.products}

    @property
    def about(self) -> dict[str, Any]:
        """The part that a file holds as JSON."""
        return {
            "shape": {"side": self.shape.side, "widths": self.shape.widths, "kernels": self.shape.kernels},
            "classes": self.classes,
            "generation": self.generation,
            "counts": self.counts,
        }

    @classmethod
    def from_file(cls, about: Mapping[str, Any], tensors: Mapping[str, Any]) -> "Base":
        """The inverse of ``about`` and ``tensors``. Raises KeyError, TypeError, ValueError."""
        (w1, w2), (k1, k2) = about["shape"]["widths"], about["shape"]["kernels"]
        first, second, last = (tensors[name].astype(np.float32) for name in SPECS)
        return cls(
            Shape(about["shape"]["side"], (w1, w2), (k1, k2)),
            (first, second, last),
            tuple(about["classes"]),
            about["generation"],
            about["counts"],
            tensors[PRODUCTS],
        )

    def write(self, path: Path) -> None:
        """Write to a temporary name beside ``path``, sync, rename. Raises SnapshotError."""
        about = {"version": VERSION, "digest": self.digest, **self.about}
        content = save(self.tensors, {"about": orjson.dumps(about).decode()})
        temporary = path.with_suffix(".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise SnapshotError(f"{path}: cannot write the base model: {error.strerror}") from error

    @classmethod
    def read(cls, path: Path) -> "Base":
        """Read and verify. Raises SnapshotError if it is missing, damaged or of another version."""
        if not path.is_file():
            raise SnapshotError(f"{path}: no such base model; marketstream pretrain makes one")
        try:
            with safe_open(path, framework="numpy") as file:
                about = orjson.loads((file.metadata() or {})["about"])
                if about["version"] != VERSION:
                    raise SnapshotError(f"{path}: version {about['version']}, this program reads {VERSION}")
                tensors = {name: file.get_tensor(name) for name in (*SPECS, PRODUCTS)}
            base = cls.from_file(about, tensors)
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise SnapshotError(f"{path}: damaged, or no base model at all: {error}") from error
        if base.digest != about["digest"]:
            raise SnapshotError(f"{path}: damaged: its digest is {base.digest}, not {about['digest']}")
        return base
