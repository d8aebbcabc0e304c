"""What both dashboards are made of: panels with a title, a sentence, a unit, a place and queries."""

from collections.abc import Iterable
from typing import TypeVar

from grafana_foundation_sdk.builders import common as build
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.dashboard import (
    AnnotationQuery,
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    GridPos,
    VariableOption,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

BLUE, ORANGE, GREEN, RED, PINK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
"""Told apart by the colour-blind too (Okabe and Ito, Color Universal Design, 2008)."""

TEN = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
"""Ten of the same kind (Petroff, Accessible color sequences for data visualization, 2021, arXiv:2107.02270)."""

PER_SECOND = "suffix:/s"

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

P = TypeVar("P", timeseries.Panel, stat.Panel, table.Panel, statetimeline.Panel)
AnyPanel = timeseries.Panel | stat.Panel | table.Panel | statetimeline.Panel


def query(expr: str, legend: str = "") -> prometheus.Dataquery:
    """A query over the time that the dashboard shows."""
    return prometheus.Dataquery().expr(expr).legend_format(legend).range()


def latest(expr: str) -> prometheus.Dataquery:
    """A query at the end of that time; its result is a table."""
    return prometheus.Dataquery().expr(expr).instant().format(PromQueryFormat.TABLE)


def panel(builder: P, title: str, about: str, unit: str, place: GridPos, *queries: prometheus.Dataquery) -> P:
    """The builder with what every panel has."""
    builder.title(title).description(about).unit(unit).grid_pos(place).datasource(DATASOURCE)
    for ref, one in zip("ABCDE", queries, strict=False):
        builder.with_target(one.ref_id(ref).datasource(DATASOURCE))
    return builder


def lines(title: str, about: str, unit: str, place: GridPos, *queries: prometheus.Dataquery) -> timeseries.Panel:
    """Lines over time. The legend is a list below them."""
    result = panel(timeseries.Panel(), title, about, unit, place, *queries)
    result.line_width(2).fill_opacity(0).show_points(common.VisibilityMode.NEVER).min(0)
    result.tooltip(build.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    return result.legend(_legend(common.LegendDisplayMode.LIST, common.LegendPlacement.BOTTOM))


def many_lines(title: str, about: str, unit: str, place: GridPos, *queries: prometheus.Dataquery) -> timeseries.Panel:
    """Lines over time, too many for a list: the legend is a table beside them, with the last values."""
    legend = _legend(common.LegendDisplayMode.TABLE, common.LegendPlacement.RIGHT).calcs(["lastNotNull"])
    return lines(title, about, unit, place, *queries).legend(legend)


def _legend(mode: common.LegendDisplayMode, placement: common.LegendPlacement) -> build.VizLegendOptions:
    return build.VizLegendOptions().display_mode(mode).placement(placement).show_legend(True)


def number(title: str, about: str, unit: str, place: GridPos, colour: str, expr: str) -> stat.Panel:
    """One number, and how it came there."""
    result = panel(stat.Panel(), title, about, unit, place, query(expr))
    result.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.FIXED).fixed_color(colour))
    result.reduce_options(build.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    return result.graph_mode(common.BigValueGraphMode.AREA).color_mode(common.BigValueColorMode.VALUE)


def coloured(builder: timeseries.Panel, colours: Iterable[tuple[str, str]]) -> timeseries.Panel:
    """The panel, with a colour for each (name of a line, colour)."""
    for name, colour in colours:
        builder.override_by_name(name, [fixed(colour)])
    return builder


def fixed(colour: str) -> DynamicConfigValue:
    return DynamicConfigValue("color", {"mode": FieldColorModeId.FIXED, "fixedColor": colour})


def shades(colour: str) -> DynamicConfigValue:
    """Another shade of one colour for each line."""
    return DynamicConfigValue("color", {"mode": FieldColorModeId.SHADES, "fixedColor": colour})


def step(name: str, options: object) -> DataTransformerConfig:
    """A transformation of what the queries gave."""
    return DataTransformerConfig(id_val=name, options=options)


class _Events(AnnotationQuery, Builder[AnnotationQuery]):
    """Marks the time in which a query has results. The SDK does not know these keys of the Prometheus data source."""

    def __init__(self, name: str, expr: str, title: str, text: str, colour: str) -> None:
        super().__init__(name=name, datasource=DATASOURCE, icon_color=colour, expr=expr)
        self._more = {"titleFormat": title, "textFormat": text, "step": "5s"}

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), **self._more}

    def build(self) -> AnnotationQuery:
        return self


def board(uid: str, title: str, about: str, panels: Iterable[AnyPanel]) -> dashboard.Dashboard:
    """A dashboard of the last five minutes, with the phases of the stream and the alerts marked."""
    source = dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    source.current(VariableOption(text="Prometheus", value="prometheus"))
    result = dashboard.Dashboard(title).uid(uid).description(about).tags(["marketstream"]).with_variable(source)
    result.time("now-5m", "now").refresh("5s").tooltip(DashboardCursorSync.CROSSHAIR)
    others = dashboard.DashboardLink("Dashboards").type(DashboardLinkType.DASHBOARDS).tags(["marketstream"])
    result.link(others.keep_time(True))
    phase = "max by (scenario, phase) (marketplace_replay_phase) == 1"
    result.annotation(_Events("Phases of the stream", phase, "{{phase}}", "scenario {{scenario}}", BLUE))
    result.annotation(_Events("Alerts", 'ALERTS{alertstate="firing"}', "{{alertname}}", "{{class}}{{reason}}", RED))
    for place, each in enumerate(panels, 1):
        result.with_panel(each.id(place))
    return result
