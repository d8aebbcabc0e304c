"""The coefficient journal: what settling publishes, and all that is needed to make the same step again.

Vendors of parameters: one float32 for each vendor. At 4 vendors and 3 specs that is 48 bytes, for a network of
87,850 parameters: whoever has the base draws the same vendors, from the seed and the generation.

Vendors of outputs: every image has vendors of its own, so a coefficient for each of them would be of use only to
somebody who has the image's products too. Published is what they add up to, the sum of ê zᵀ (C×D float32), and the
sum of z (D float32): 25 kB at 10 classes and D = 577.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import RecoveryError
from pipeline.paths.network import Floats

NO_SLOPES: tuple[Floats, Floats] = np.zeros((0, 0), np.float32), np.zeros(0, np.float32)
"""What vendors of parameters publish about slopes."""


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What settling found.

    Parameters
    ----------
    generation
        Whose vendors were drawn.
    classes, quoted
        The C names, and how many of them the vendors knew; the others are new.
    counts
        Images of each label that were settled.
    coefficients
        One for each vendor, spec by spec, of the specs whose parameters are traded.
    slopes, products
        Vendors of outputs: Σ ê zᵀ ``[C, D]`` and Σ z ``[D]``, where z ends with the constant 1; else empty.
    scale
        Multiple of the step that was found best.
    unsound
        Places of images whose loss was not finite: they are not in the update. Not published.
    """

    generation: int
    classes: tuple[str, ...]
    quoted: int
    counts: Mapping[str, int]
    coefficients: tuple[Floats, ...]
    slopes: Floats
    products: Floats
    scale: float = 1.0
    unsound: tuple[int, ...] = ()

    @property
    def published(self) -> bytes:
        """The numbers of the update, one after the other, little-endian float32."""
        parts = [*self.coefficients, self.slopes, self.products]
        return b"".join(part.astype("<f4").tobytes() for part in parts)

    def record(self) -> dict[str, Any]:
        """The update as JSON takes it."""
        return {
            "generation": self.generation,
            "classes": self.classes,
            "quoted": self.quoted,
            "counts": dict(self.counts),
            "vendors": [len(part) for part in self.coefficients],
            "numbers": base64.b64encode(self.published).decode(),
            "scale": self.scale,
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Update":
        """The update that a record holds, to the bit. Raises RecoveryError if it is damaged."""
        try:
            numbers = np.frombuffer(base64.b64decode(record["numbers"], validate=True), "<f4").astype(np.float32)
            classes = tuple(record["classes"])
            *coefficients, rest = np.split(numbers, np.cumsum(record["vendors"], dtype=np.int64))
            rows = rest.reshape(len(classes) + 1, -1)
            slopes, products = (rows[:-1], rows[-1]) if rest.size else NO_SLOPES
            return cls(
                record["generation"],
                classes,
                record["quoted"],
                dict(record["counts"]),
                tuple(coefficients),
                slopes,
                products,
                record["scale"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RecoveryError(f"the journal holds a record that cannot be read: {error!r}") from error
