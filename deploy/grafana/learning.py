"""The dashboard Learning: how well every class is known, what it cost the others, and what is taken for what."""

from collections.abc import Sequence

from grafana_foundation_sdk.builders import dashboard, table
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue, FieldColorModeId, GridPos, VariableOption
from grafana_foundation_sdk.models.units import PercentUnit, Short

from deploy.grafana.parts import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    RED,
    TEN,
    AnyPanel,
    board,
    coloured,
    fixed,
    latest,
    lines,
    many_lines,
    number,
    panel,
    query,
    shades,
    step,
)
from pipeline.data.datasets import DIGITS, FASHION

ACCURACY = "class:marketplace_rolling_accuracy_ratio:avg"
OVERALL = "avg(job:marketplace_rolling_accuracy_overall_ratio:avg)"
FORGETTING = "class:marketplace_forgetting_ratio:avg"
OLD, NEW = '{class=~"$old"}', '{class!~"$old"}'


def learning() -> dashboard.Dashboard:
    """The first dashboard, and Grafana's home."""
    about = "Every image is predicted before its label is seen, and learnt from right after."
    old = dashboard.TextBoxVariable("old").label("Old classes (regular expression)").default_value("[0-9]")
    old.current(VariableOption(text="[0-9]", value="[0-9]"))
    return board("learning", "Learning", about, [*_numbers(), *_curves(), *_details()]).with_variable(old)


def _numbers() -> list[AnyPanel]:
    shown = (
        ("Right, all classes", "Share of the last images of any class that were predicted right.", OVERALL, GREEN),
        ("Right, old classes", "Mean rolling accuracy of the old classes.", f"avg({ACCURACY}{OLD})", BLUE),
        ("Right, new classes", "Mean rolling accuracy of all other classes.", f"avg({ACCURACY}{NEW})", ORANGE),
        ("Most forgotten", "What the class that lost most is below its best.", f"max({FORGETTING})", RED),
    )
    ratios = [
        number(title, about, PercentUnit, GridPos(4, 4, 4 * i, 0), colour, expr).decimals(1)
        for i, (title, about, expr, colour) in enumerate(shown)
    ]
    known = ("Classes seen", "Classes that had a labelled image so far.", Short, GridPos(4, 4, 16, 0), PINK)
    images = ("Images learnt", "Images that the model was made of so far.", Short, GridPos(4, 4, 20, 0), GREEN)
    return [*ratios, number(*known, f"count({ACCURACY})"), number(*images, "max(marketplace_model_images)")]


def _curves() -> list[AnyPanel]:
    about = "Share of the last images of each {} class that were predicted right before their label was seen."
    old, new = (query(f"{ACCURACY}{which}", "{{class}}") for which in (OLD, NEW))
    places = GridPos(10, 12, 0, 4), GridPos(10, 12, 12, 4)
    return [
        coloured(
            many_lines(f"Rolling accuracy: {kind} classes", about.format(kind), PercentUnit, place, one).max(1),
            zip(names, TEN, strict=True),
        )
        for kind, place, one, names in (("old", places[0], old, DIGITS), ("new", places[1], new, FASHION))
    ]


def _details() -> list[AnyPanel]:
    means = lines(
        "Old and new classes",
        "Mean rolling accuracy of the old classes (blue), of the new ones (orange), and of all images (green).",
        PercentUnit,
        GridPos(10, 12, 12, 14),
        query(f"avg({ACCURACY}{OLD})", "old"),
        query(f"avg({ACCURACY}{NEW})", "new"),
        query(OVERALL, "all images"),
    )
    lost = many_lines(
        "Forgetting",
        "How far each class is below its best rolling accuracy; old classes are blue, new ones orange; zero is good.",
        PercentUnit,
        GridPos(10, 12, 12, 24),
        query(f"{FORGETTING}{OLD}", "{{class}}"),
        query(f"{FORGETTING}{NEW}", "{{class}}"),
    )
    for ref, colour in (("A", BLUE), ("B", ORANGE)):
        lost.override_by_query(ref, [shades(colour)])
    colours = (("old", BLUE), ("new", ORANGE), ("all images", GREEN))
    return [_table(), coloured(means, colours).max(1).line_width(3), lost, _confusion()]


def _table() -> table.Panel:
    """One row a class; each query becomes a column of small curves, named Trend #A and so on."""
    columns = (
        ("Rolling accuracy", f"avg by (class) ({ACCURACY})", PercentUnit, BLUE),
        ("Forgetting", f"avg by (class) ({FORGETTING})", PercentUnit, RED),
        ("Images", "sum by (class) (marketplace_images_total)", Short, GREEN),
    )
    result = panel(
        table.Panel(),
        "Classes",
        "For each class its rolling accuracy, its forgetting and its labelled images, now and over the time shown.",
        PercentUnit,
        GridPos(20, 12, 0, 14),
        *(query(expr, "{{class}}") for _, expr, _, _ in columns),
    )
    for ref, (name, _, unit, colour) in zip("ABC", columns, strict=True):
        result.override_by_name(f"Trend #{ref}", [*_sparkline(name, unit), fixed(colour)])
    result.override_by_name("class", [DynamicConfigValue("displayName", "Class")])
    result.with_transformation(step("timeSeriesTable", {}))
    result.with_transformation(step("joinByField", {"byField": "class", "mode": "outer"}))
    return result.with_transformation(step("sortBy", {"sort": [{"field": "class"}]}))


def _sparkline(name: str, unit: str) -> Sequence[DynamicConfigValue]:
    look = common.TableSparklineCellOptions(line_width=1, fill_opacity=10, show_points=common.VisibilityMode.NEVER)
    return (
        DynamicConfigValue("displayName", name),
        DynamicConfigValue("unit", unit),
        DynamicConfigValue("custom.cellOptions", look),
    )


def _confusion() -> table.Panel:
    """Rows are labels, columns what they were taken for; cells are shares of a row."""
    cells = 'label_replace(marketplace_confusion_total, "predicted", "(nothing)", "predicted", "")'
    total = "sum by (label) (marketplace_confusion_total)"
    result = panel(
        table.Panel(),
        "What is taken for what",
        "Share of the images of each class (rows) that were predicted as each class (columns), of all images so far.",
        PercentUnit,
        GridPos(23, 24, 0, 34),
        latest(f"sum by (label, predicted) ({cells}) / on (label) group_left () {total}"),
    )
    background = common.TableColoredBackgroundCellOptions(mode=common.TableCellBackgroundDisplayMode.BASIC)
    scheme = dashboard.FieldColor().mode(FieldColorModeId.CONTINUOUS_BLUES)
    result.cell_options(background).color_scheme(scheme).min(0).max(1).decimals(0).min_width(50)
    plain = DynamicConfigValue("custom.cellOptions", common.TableAutoCellOptions())
    width = DynamicConfigValue("custom.width", 100)
    name = DynamicConfigValue("displayName", "is \\ predicted as")
    result.override_by_name("label\\predicted", [plain, width, name])
    result.with_transformation(step("sortBy", {"sort": [{"field": "predicted"}]}))
    matrix = {"rowField": "label", "columnField": "predicted", "valueField": "Value", "emptyValue": "empty"}
    result.with_transformation(step("groupingToMatrix", matrix))
    return result.with_transformation(step("sortBy", {"sort": [{"field": "label\\predicted"}]}))
