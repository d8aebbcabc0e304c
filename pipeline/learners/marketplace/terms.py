"""Terms of a run of ``marketplace``: vendors and step sizes. Two sets of terms are in use."""

from dataclasses import dataclass
from typing import Literal

On = Literal["parameters", "outputs"]
Unit = Literal["whole", "per_spec"]


@dataclass(frozen=True)
class Terms:
    """Everything that a run of ``marketplace`` keeps to.

    Parameters
    ----------
    vendors
        For each spec. On parameters: how many vendors there are, the leader included; a spec with 1 never moves.
        On outputs: how many pairs of vendors every image draws.
    last
        What the vendors of the last spec perturb. Those of the others perturb parameters.
    lr, probe
        Length of a step of the specs with vendors of parameters. A delta is at most lr × probe.
    outputs_lr
        Learning rate of the last spec if its vendors are on outputs.
    lr_decay
        Share of both rates that is lost from one generation to the next.
    unit
        Whether the direction has length 1 over the whole network or in every spec.
    label_weights
        Whether losses are weighted, inversely to how often their label has come.
    upstream_sampling
        Training form: how many of the paths that lead to a spec each of its vendors is offered. 0 means all. A leader
        alone is always offered all.
    scales
        Training form: multiples of the step to try in a second forward pass. The best is taken.
    seed
        Of everything that is drawn.

    Raises
    ------
    ValueError
        If a spec has no vendor, or no scale is given.
    """

    vendors: tuple[int, int, int] = (1, 1, 16)
    last: On = "outputs"
    lr: float = 1e-2
    probe: float = 1.0
    outputs_lr: float = 0.3
    lr_decay: float = 0.0
    unit: Unit = "whole"
    label_weights: bool = False
    upstream_sampling: int = 0
    scales: tuple[float, ...] = (1.0,)
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.vendors) < 1:
            raise ValueError(f"every spec needs a vendor, but they are {self.vendors}")
        if not self.scales:
            raise ValueError("at least one multiple of the step is needed")

    @property
    def traded(self) -> tuple[int, ...]:
        """The specs whose parameters have vendors besides the leader."""
        specs = range(2 if self.last == "outputs" else 3)
        return tuple(spec for spec in specs if self.vendors[spec] > 1)

    def decayed(self, generation: int) -> float:
        """What is left of the rates: (1 - lr_decay) ^ generation."""
        return float((1 - self.lr_decay) ** generation)


PUBLISHED = Terms(vendors=(4, 4, 4), last="parameters", label_weights=True)
"""The continual form of the articles."""

STREAM = Terms()
"""For a real stream: sixteen pairs of vendors an image on the outputs of the last spec. The other specs never move."""
