from contextlib import closing
from pathlib import Path

import orjson
import pytest

from pipeline.broker import connect
from pipeline.errors import TopicError
from pipeline.records import create


def test_it_creates_every_topic_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path / 'stream.db'}"
    flags = ["--broker", url, "--topic-prefix", "a.", "--partitions", "3", "--json"]
    assert create.main(flags) == create.main(flags) == 0
    first, second = map(orjson.loads, capsys.readouterr().out.splitlines())
    assert first == second == {"topics": {"a.images": 3, "a.predictions": 1, "a.updates": 1, "a.dead-letters": 1}}
    with closing(connect(url)) as broker:
        assert len(broker.extents("a.images")) == 3


def test_it_refuses_another_number_of_partitions(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'stream.db'}"
    create.main(["--broker", url, "--partitions", "3"])
    with pytest.raises(TopicError, match="3 partitions"):
        create.main(["--broker", url, "--partitions", "2"])
