"""Create all topics, once, before anyone reads or writes them.

    marketstream topics [--broker kafka://HOST:PORT]

Topics that exist already are left as they are.
"""

from collections.abc import Sequence
from contextlib import closing

from pipeline import cli
from pipeline.broker import connect
from pipeline.records.topics import Topics


def main(arguments: Sequence[str] | None = None) -> int:
    """Create the topics as the command line says."""
    names = ("broker", "topic_prefix", "partitions", "retention", "retention_bytes", "replication")
    options = cli.parser("Create all topics; those that exist are left as they are.", *names).parse_args(arguments)
    settings = cli.settings_of(options)
    topics = Topics(settings.topic_prefix)
    wanted = [topics.source(settings), *topics.results()]
    with closing(connect(settings.broker, settings)) as broker:
        broker.ensure_topics(wanted)
        sizes = {topic.name: len(broker.extents(topic.name)) for topic in wanted}
    cli.tell(options.json, {"topics": sizes}, *(f"{name}: {count} partitions" for name, count in sizes.items()))
    return 0


if __name__ == "__main__":
    cli.run(main)
