"""The page and the picture of ``docs/scale.md``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.scale.group import REAL, STRETCH

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#888888"

PAGE = Path(__file__).with_suffix(".md")

Shown = Sequence[tuple[str, str, float, str]]
"""What a number is called, its key, times what it is written, and how."""

GROUPS = (
    ("images/s", "images_per_second", 1, ",.0f"),
    ("ms of processor time an image, of all learners", "processor_seconds_per_image", 1e3, ".2f"),
    ("seconds from the start of a process until it is at work, all at once", "seconds_to_work", 1, ".1f"),
    ("seconds of that from its assignments on", "seconds_to_take_over", 1, ".2f"),
    ("MB on `sums`", "sums_bytes", 1e-6, ".0f"),
    ("deltas there", "deltas", 1, "d"),
    ("checkpoints there", "bases", 1, "d"),
    ("right while streaming", "prequential", 1, ".4f"),
)
HELD_OUT = [("right of held-out images", "held_out", 1, ".4f")]
SIMULATED = (
    "| {learners} | {images_per_second:,.0f} | {efficiency:.0%} | {mb[bytes_in]:.1f} | {mb[bytes_out]:.1f} "
    "| {mb[broker_out]:,.0f} | {unseen:,.0f} |"
)


def text(result: Mapping[str, Any]) -> str:
    """The page, in Markdown."""
    each, groups, late = result["cores_each"], result["groups"], result["late"]
    part = f"of {each} such cores (the costs, and the late learner above, are of the other "
    streaming = [
        (f"of images {number * STRETCH + 1:,} to {(number + 1) * STRETCH:,}", *(f"{share:.4f}" for share in shares))
        for number, shares in enumerate(zip(*(g["stretches"] for g in groups), strict=True))
    ]
    once = ("each image predicted once", *("yes" if g["each_once"] else "NO" for g in groups))
    digests = ("digest", *(f"`{g['digest']:.12}`" for g in groups))
    return PAGE.read_text(encoding="utf-8").format(
        **result,
        cores_told=f": {each} for each learner, the rest for the broker and whoever watches" if each else "",
        machine=f"{part}{result['cores'] - REAL[-1] * each})" if each else "like this one",
        groups_table=report.markdown(
            ["learners", *(str(g["learners"]) for g in groups)],
            [*_rows(GROUPS, groups), *streaming, *_rows(HELD_OUT, groups), once, digests],
        ),
        left=", ".join(f"{n} {kind}{'s' * (n > 1)}" for kind, n in sorted(late["records_left"].items())),
        megabytes_left=late["bytes_left"] / 1e6,
        us_an_image=1e6 * result["image_seconds"],
        ms={name: 1e3 * cost for name, cost in result["costs"].items()},
        mb=_megas(result["costs"]),
        simulated_rows="\n".join(SIMULATED.format(**f, mb=_megas(f)) for f in result["simulated"]),
    )


def _rows(shown: Shown, found: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [(name, *(f"{times * f[key]:{form}}" for f in found)) for name, key, times, form in shown]


def _megas(found: Mapping[str, float]) -> dict[str, float]:
    return {name: value / 1e6 for name, value in found.items()}


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Images a second, the links, and staleness, against the number of learners."""
    figure, (rate, links, stale) = report.panels(1, 3, (11, 3.6))
    found, groups = result["simulated"], result["groups"]
    counts = [f["learners"] for f in found]
    one = found[0]["images_per_second"]
    rate.plot(counts, [one * n for n in counts], "--", color=GREY, label="N times one")
    rate.plot(counts, [f["images_per_second"] for f in found], ".-", color=BLUE, label="simulated")
    measured = [g["images_per_second"] for g in groups]
    rate.plot([g["learners"] for g in groups], measured, "o", color=ORANGE, label="measured, all on one machine")
    for key, whose, colour in (
        ("bytes_in", "into a learner", BLUE),
        ("bytes_out", "out of a learner", ORANGE),
        ("broker_out", "out of the broker", GREY),
    ):
        links.plot(counts, [f[key] / 1e6 for f in found], ".-", color=colour, label=whose)
    stale.plot(counts[1:], [f["unseen"] for f in found[1:]], ".-", color=BLUE, label="not seen")
    titles = ("images/s", "MB/s", "images that a learner has not seen yet")
    for axes, title in zip((rate, links, stale), titles, strict=True):
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", xlabel="learners", title=title)
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.legend(frameon=False, fontsize=8)
    report.save(figure, path)
