"""The table and the picture of ``docs/scale.md``."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.scale.groups import REAL, STRETCH

STREAMING = "right while streaming"
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#888888"


def text(result: Mapping[str, Any]) -> str:
    """The page, in Markdown."""
    late, amid, each = result["late"], result["join_amid_work"], result["cores_each"]
    rest = result["cores"] - REAL[-1] * each
    return _PAGE.format(
        **result,
        cores_told=f": {each} for each learner, the rest for the broker and whoever watches" if each else "",
        cores_meaning=_OF_THEIR_OWN if each else _SHARED,
        machine=_PART.format(each=each, rest=rest) if each else "like this one",
        groups_table=_groups(result["groups"]),
        joined=amid["seconds_to_work"],
        joined_from_assignment=amid["seconds_to_take_over"],
        joined_predicted=amid["seconds_to_predict"],
        left=", ".join(f"{n} {kind}{'s' * (n > 1)}" for kind, n in sorted(late["records_left"].items())),
        left_megabytes=late["bytes_left"] / 1e6,
        read_ms=1e3 * result["costs"]["read"],
        costs_table=_costs(result["costs"], result["image_seconds"]),
        simulated_table=table(_FOUND, [_found(str(f["learners"]), f) for f in result["simulated"]]),
        remedies_table=table(_FOUND, [_found(name, f) for name, f in result["remedies"].items()]),
    )


_PAGE = """# What more learners bring, and what they cost

Written by `python -m benchmarks.scale`, with its numbers. All of it ran on one machine
of {cores} cores, the broker too{cores_told}.

## Real learners

Processes that share {images:,} images of `mixed`, in 4 partitions of a real Kafka broker. The digest of a single
learner without any broker is `{digest:.12}`.

{groups_table}

{cores_meaning} What a group costs beyond a single
learner is in the line of processor time: most of it at the start, where its micro-batches are small, each learner
clears as often as a single one would, and reads what the others publish after every micro-batch. That is why it is
about as often right as a single learner is at the same number of images (a share of 5,120 images has a standard
deviation of .4 points).

A third learner that joins two at work: {joined:.1f} s from the start of its process until it is at work,
{joined_from_assignment:.2f} s of them from its assignments on; {joined_predicted:.1f} s until its first prediction.

## After ten million images

A group that has learnt from {late[images]:,} images has published {late[deltas_written]:,} deltas. Its topic `sums`,
just before the next base is due, holds {left}: {left_megabytes:,.0f} MB. A learner with an empty disk is at work
{late[seconds_to_work]:.1f} s after the start of its process, and has predicted after {late[seconds_to_predict]:.1f} s.
Without bases it would have all deltas to read: {late[seconds_without_bases]:,.0f} s, at {read_ms:.0f} ms each.

## Simulated: every learner on a machine of its own

{costs_table}

With these costs, the project's own schedule of publishing, and links of 10 Gbit/s (assumed): each learner on a machine
{machine}, with partitions that never run dry. What is *not seen* is what the others have learnt and a learner does
not serve from yet, on average.

{simulated_table}

![Images a second, what goes over the links, and what is not seen](scale.png)

Each learner adds up what all others publish, so reading grows with their number, and what leaves the broker with its
square. What is little waits until four times as long has gone by as reading took, up to a minute; but 30,000 images are
the most that a delta can hold, in its integers of 32 bits, so that a large group comes to read half of the time, and
the broker's link to be full: from then on what is not seen grows for as long as the stream flows. What would move the
bend, at 64 learners:

{remedies_table}
"""


_SHARED = "More learners need not be quicker where all of them and the broker share the same cores."
_OF_THEIR_OWN = (
    "Each has cores of its own; the broker is one for all, and a stream of so few images is over in seconds."
)

_PART = "of {each} such cores (the costs, and the late learner above, are of the other {rest})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _groups(groups: Sequence[Mapping[str, Any]]) -> str:
    shown: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "images/s": lambda g: f"{g['images_per_second']:,.0f}",
        "ms of processor time an image, of all learners": lambda g: f"{1e3 * g['processor_seconds_per_image']:.2f}",
        "seconds from the start of a process until it is at work, all at once": lambda g: f"{g['seconds_to_work']:.1f}",
        "seconds of that from its assignments on": lambda g: f"{g['seconds_to_take_over']:.2f}",
        "MB on `sums`": lambda g: f"{g['sums_bytes'] / 1e6:.0f}",
        "deltas there": lambda g: str(g["sums_records"].get("delta", 0)),
        "bases there": lambda g: str(g["sums_records"].get("base", 0)),
        STREAMING: lambda g: f"{g['prequential']:.4f}",
        "right of held-out images": lambda g: f"{g['held_out']:.4f}",
        "each image predicted once": lambda g: "yes" if g["each_once"] else "NO",
        "digest": lambda g: f"`{g['digest'][:12]}`",
    }
    head = ("learners", *(str(g["learners"]) for g in groups))
    rows = [(name, *map(cell, groups)) for name, cell in shown.items()]
    streaming = [
        (f"of images {number * STRETCH + 1:,} to {(number + 1) * STRETCH:,}", *(f"{share:.4f}" for share in shares))
        for number, shares in enumerate(zip(*(g["stretches"] for g in groups), strict=True))
    ]
    place = next(number for number, row in enumerate(rows) if row[0] == STREAMING) + 1
    return table(head, [*rows[:place], *streaming, *rows[place:]])


def _costs(costs: Mapping[str, float], image_seconds: float) -> str:
    measured = {
        "quote, µs of processor time an image": f"{1e6 * costs['quote']:.0f}",
        "settle and add, µs of processor time an image": f"{1e6 * costs['settle']:.0f}",
        "clear, s of processor time": f"{costs['clear']:.2f}",
        "a lone learner with all that comes with an image, µs": f"{1e6 * image_seconds:.0f}",
        "make, encode and commit a delta of 20,000 images, ms": f"{1e3 * costs['publish']:.0f}",
        "read, decode and add one, ms": f"{1e3 * costs['read']:.0f}",
        "read and decode a base, ms": f"{1e3 * costs['read_base']:.0f}",
        "MB of a delta": f"{costs['delta_bytes'] / 1e6:.1f}",
        "MB of a base": f"{costs['base_bytes'] / 1e6:.1f}",
        "bytes of an image record": f"{costs['image_bytes']:,}",
        "bytes of a prediction": f"{costs['prediction_bytes']:,}",
    }
    return table(("measured in the same run", ""), list(measured.items()))


_FOUND = (
    "learners",
    "images/s",
    "of N times one",
    "MB/s into a learner",
    "MB/s out of it",
    "MB/s out of the broker",
    "images not seen",
)


def _found(name: str, f: Mapping[str, float]) -> tuple[str, ...]:
    return (
        name,
        f"{f['images_per_second']:,.0f}",
        f"{f['efficiency']:.0%}",
        f"{f['bytes_in'] / 1e6:.1f}",
        f"{f['bytes_out'] / 1e6:.1f}",
        f"{f['broker_out'] / 1e6:,.0f}",
        f"{f['unseen']:,.0f}",
    )


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Images a second, the links, and staleness, against the number of learners."""
    found = result["simulated"]
    counts = [f["learners"] for f in found]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    rate, links, stale = figure.subplots(1, 3)
    one = found[0]["images_per_second"]
    _line(rate, counts, [one * n for n in counts], "N times one", GREY, "--")
    _line(rate, counts, [f["images_per_second"] for f in found], "simulated", BLUE)
    measured = result["groups"]
    rate.plot([g["learners"] for g in measured], [g["images_per_second"] for g in measured], "o", color=ORANGE,
              label="measured, all on one machine")  # fmt: skip
    rate.set_title("images/s")
    _line(links, counts, [f["bytes_in"] / 1e6 for f in found], "into a learner", BLUE)
    _line(links, counts, [f["bytes_out"] / 1e6 for f in found], "out of a learner", ORANGE)
    _line(links, counts, [f["broker_out"] / 1e6 for f in found], "out of the broker", GREY)
    links.set_title("MB/s")
    _line(stale, counts[1:], [f["unseen"] for f in found[1:]], "not seen", BLUE)
    stale.set_title("images that a learner has not seen yet")
    for axes in (rate, links, stale):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.set_xlabel("learners")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (rate, links):
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def _line(axes: Axes, xs: Sequence[int], ys: Sequence[float], label: str, colour: str, style: str = "-") -> None:
    axes.plot(xs, ys, style, color=colour, label=label, marker="" if style == "--" else ".")
