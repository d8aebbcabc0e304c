"""The dashboard Pipeline: how fast images go through, where time goes, and whether anything is in trouble."""

from grafana_foundation_sdk.builders import dashboard, statetimeline
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.dashboard import GridPos, ValueMap, ValueMappingResult
from grafana_foundation_sdk.models.units import BytesIEC, PercentUnit, Seconds, Short

from deploy.grafana.parts import (
    BLUE,
    GREEN,
    ORANGE,
    PER_SECOND,
    PINK,
    RED,
    AnyPanel,
    board,
    coloured,
    lines,
    number,
    panel,
    query,
)

LAG = "job:marketplace_consumer_lag_records:sum"
SENT, PREDICTED, LEARNT = (
    f"sum(job:marketplace_{name}:rate30s)" for name in ("replayed_images", "images", "settled_images")
)
QUANTILES = ((0.5, "half", BLUE), (0.9, "9 of 10", ORANGE), (0.99, "99 of 100", RED))


def pipeline() -> dashboard.Dashboard:
    """The second dashboard."""
    about = "Producer, learners and Prometheus: speed, lag, transactions, what went wrong, memory and processors."
    return board("pipeline", "Pipeline", about, [*_numbers(), *_flow(), *_times(), *_trouble(), *_processes()])


def _numbers() -> list[AnyPanel]:
    firing = 'count(ALERTS{alertstate="firing"}) or vector(0)'
    shown = (
        ("Images predicted", "Labelled images a second, over 30 seconds.", PER_SECOND, BLUE, PREDICTED),
        ("Lag", "Images on the topic that no learner has read yet.", Short, ORANGE, f"sum({LAG})"),
        ("Generation", "How often the weights were made anew.", Short, GREEN, "max(marketplace_generation)"),
        ("Learners at work", "Learners that neither wait nor stand by.", Short, GREEN, "sum(marketplace_at_work)"),
        ("Dead letters", "Records that could not be used.", Short, PINK, f"sum({_total('dead_letters')}) or vector(0)"),
        ("Alerts", "Alerts that are firing now.", Short, RED, firing),
    )
    return [
        number(title, about, unit, GridPos(4, 4, 4 * i, 0), colour, expr).decimals(0)
        for i, (title, about, unit, colour, expr) in enumerate(shown)
    ]


def _total(name: str) -> str:
    return f"marketplace_{name}_total"


def _flow() -> list[AnyPanel]:
    speed = lines(
        "Images a second",
        "Images that producers send, and labelled images that learners predict and learn from, over 30 seconds.",
        PER_SECOND,
        GridPos(8, 12, 0, 4),
        query(SENT, "sent"),
        query(PREDICTED, "predicted"),
        query(LEARNT, "learnt"),
    )
    lag = lines(
        "Lag by partition",
        "Images on each partition that were not read yet; near zero where the producer is slower than the learner.",
        Short,
        GridPos(8, 12, 12, 4),
        query("sum by (partition) (marketplace_consumer_lag_records)", "partition {{partition}}"),
    )
    return [coloured(speed, (("sent", PINK), ("predicted", BLUE), ("learnt", ORANGE))), lag]


def _times() -> list[AnyPanel]:
    shown = (
        ("Quote", "Time to predict a micro-batch; quantiles over 30 seconds.", _recent("quote")),
        ("Settle", "Time to learn from a micro-batch; quantiles over 30 seconds.", _recent("settle")),
        ("Clear", "Time to make weights of the sums; quantiles over all clearings so far.", _ever("clear")),
    )
    colours = [(name, colour) for _, name, colour in QUANTILES]
    return [
        coloured(
            lines(
                title,
                about,
                Seconds,
                GridPos(8, 8, 8 * i, 12),
                *(query(f"histogram_quantile({q}, {buckets})", name) for q, name, _ in QUANTILES),
            ),
            colours,
        )
        for i, (title, about, buckets) in enumerate(shown)
    ]


def _recent(what: str) -> str:
    return f"sum by (le) (job_le:marketplace_{what}_seconds_bucket:rate30s)"


def _ever(what: str) -> str:
    """Clearings are too rare for a quantile over seconds."""
    return f"sum by (le) (marketplace_{what}_seconds_bucket)"


def _trouble() -> list[AnyPanel]:
    transactions = lines(
        "Transactions",
        "Micro-batches a second that were committed, aborted, or of which it was not known, over 30 seconds.",
        PER_SECOND,
        GridPos(8, 8, 0, 20),
        query("sum by (outcome) (job_outcome:marketplace_transactions:rate30s)", "{{outcome}}"),
    )
    broker = lines(
        "Trouble with the broker",
        "Rebalances, reconnections and errors within the last 5 minutes; all are recovered from.",
        Short,
        GridPos(8, 8, 8, 20),
        query(f"sum(increase({_total('rebalances')}[5m]))", "rebalances"),
        query(f"sum(increase({_total('reconnects')}[5m]))", "reconnections"),
        query(f"sum by (kind) (increase({_total('broker_errors')}[5m]))", "error: {{kind}}"),
    )
    reasons = "sum by (reason) (job_reason:marketplace_dead_letters:increase5m)"
    dead = lines(
        "Dead letters by reason",
        "Records within the last 5 minutes that could not be used, and went to the topic dead-letters.",
        Short,
        GridPos(8, 8, 16, 20),
        query(f'{reasons} or on () label_replace(vector(0), "reason", "none", "", "")', "{{reason}}"),
    )
    return [coloured(transactions, (("committed", BLUE), ("aborted", ORANGE), ("unknown", RED))), broker, dead]


def _processes() -> list[AnyPanel]:
    generation = lines(
        "Generation by learner",
        "The version of the weights that each learner serves; it rises by one with every clearing.",
        Short,
        GridPos(8, 8, 0, 28),
        query("max by (instance) (marketplace_generation)", "{{instance}}"),
    )
    memory = lines(
        "Memory",
        "Resident memory of each process.",
        BytesIEC,
        GridPos(8, 8, 8, 28),
        query("process_resident_memory_bytes", "{{job}} {{instance}}"),
    )
    processors = lines(
        "Processors",
        "Share of one processor that each process uses, over 30 seconds; 200% is two of them.",
        PercentUnit,
        GridPos(8, 8, 16, 28),
        query("rate(process_cpu_seconds_total[30s])", "{{job}} {{instance}}"),
    )
    return [generation, memory, processors, _targets()]


def _targets() -> statetimeline.Panel:
    about = "Whether Prometheus reaches each process; a producer that has sent its whole scenario ends, and is down."
    place = GridPos(7, 24, 0, 36)
    result = panel(statetimeline.Panel(), "Targets", about, Short, place, query("up", "{{job}} {{instance}}"))
    states = {"1": ValueMappingResult(text="up", color=BLUE), "0": ValueMappingResult(text="down", color=ORANGE)}
    return result.mappings([ValueMap(options=states)]).show_value(common.VisibilityMode.NEVER)
