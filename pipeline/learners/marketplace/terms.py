"""How a market of paths trades: vendors, step sizes, and the two ways that are used."""

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
        Of each spec. On parameters: vendors, the leader among them; 1 is the leader alone, whose spec never moves.
        On outputs: pairs of vendors that every image draws.
    last
        What the vendors of the last spec perturb. Those of the others perturb parameters.
    lr, probe
        Length of a step of the specs with vendors of parameters; a delta is up to lr × probe.
    outputs_lr
        Step of the last spec against the slope, if its vendors are on outputs.
    lr_decay
        Share of both rates that is lost from one generation to the next.
    unit
        Whether the direction has length 1 over the whole network or in every spec.
    label_weights
        Whether losses are weighted, inversely to how often their label has come.
    upstream_sampling
        Training form: how many of the paths that lead to a spec are offered to each of its vendors; 0: all.
        A leader alone is offered all of them.
    scales
        Training form: multiples of the step that are tried in a second forward pass; the best is taken.

    Raises ValueError if there is no such market.
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
        """The specs of which parameters have vendors beside the leader."""
        specs = range(2 if self.last == "outputs" else 3)
        return tuple(spec for spec in specs if self.vendors[spec] > 1)

    def decayed(self, generation: int) -> float:
        """What is left of the rates: (1 - lr_decay) ^ generation."""
        return float((1 - self.lr_decay) ** generation)


PUBLISHED = Terms(vendors=(4, 4, 4), last="parameters", label_weights=True)
"""The continual form of the articles."""

STREAM = Terms()
"""What learns on a real stream: the last spec's vendors on outputs, sixteen pairs an image; the others stay."""
