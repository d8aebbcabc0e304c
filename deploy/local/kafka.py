"""A real Apache Kafka broker of one node on this machine, for tests and for people.

    python -m deploy.local.kafka [--port 9092]

Needs Java 17 or newer, and Maven for the first run, which fetches Kafka into the cache directory.
"""

import argparse
import base64
import contextlib
import logging
import shutil
import socket
import subprocess
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaAdminClient

from deploy.local import process
from pipeline import cli
from pipeline.broker.kafka.connection import Connection
from pipeline.errors import BrokerError, MarketstreamError
from pipeline.settings import Settings, load

log = logging.getLogger(__name__)

VERSION = "4.2.0"
USER, PASSWORD = "alice", "wonderland"
"""Who may log in at the port that asks for it."""

START_SECONDS = 60.0
_TRIES = 3  # another program may take a port that was free a moment ago

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>marketstream</groupId><artifactId>kafka</artifactId><version>{VERSION}</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>{VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""

# Rebalances at once, and neither sessions nor transactions of killed processes linger: tests wait for all of them.
_PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},LOGIN://127.0.0.1:{login},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},LOGIN://127.0.0.1:{login}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,LOGIN:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
sasl.enabled.mechanisms=PLAIN
listener.name.login.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{user}="{password}";
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=2
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
"""


# Without the second compiler: in the minutes that such a broker lives, it takes more time than it saves.
_OPTIONS = [
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
]


class KafkaUnavailableError(MarketstreamError):
    """No broker can be run here: no Java, no Maven, no network, or it does not come up."""


def install(cache: Path) -> Path:
    """The directory of Kafka's jars, which are fetched if they are not there. Raises KafkaUnavailableError."""
    return process.kept(cache / f"kafka-{VERSION}", _fetch, _complete)


def _complete(libs: Path) -> bool:
    """Whether all jars are there that Maven put there, with their sizes."""
    try:
        listed = dict(line.split() for line in (libs / "list").read_text().splitlines())
    except OSError:
        return False
    return bool(listed) and listed == _sizes(libs)


def _sizes(libs: Path) -> dict[str, str]:
    return {jar.name: str(jar.stat().st_size) for jar in libs.glob("*.jar")}


def _fetch(folder: Path) -> Path:
    (folder / "pom.xml").write_text(_POM)
    log.info("fetching Apache Kafka %s with Maven (55 MB, once)", VERSION)
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=libs"]
    # Maven checks what it downloads against the checksums beside it, and fails (-C) where they differ.
    done = _run(["mvn", "-q", "-B", "-C", *goal], folder, "Maven")
    libs = folder / "libs"
    if done.returncode or not list(libs.glob(f"kafka_*-{VERSION}.jar")):
        raise KafkaUnavailableError(
            f"Maven could not fetch Kafka {VERSION}: {process.last_line(done.stdout)}; "
            "check the network and its settings.xml"
        )
    (libs / "list").write_text("".join(f"{name} {size}\n" for name, size in _sizes(libs).items()))
    return libs


def _run(command: list[str], folder: Path, what: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except FileNotFoundError:
        raise KafkaUnavailableError(
            f"{what} is not on this machine ({command[0]}): install a JDK of version 17 or newer and Maven, or use "
            "Docker's apache/kafka"
        ) from None


@dataclass(frozen=True)
class Address:
    """Where a broker is: without a login, with one, and at which port."""

    url: str
    login_url: str
    port: int


class Server:
    """A started broker, with data of its own in a temporary directory.

    Parameters
    ----------
    cache
        Where Kafka's jars are kept.
    port
        Where it listens; None: at a free port.

    Raises KafkaUnavailableError.
    """

    def __init__(self, cache: Path, port: int | None = None) -> None:
        self._libs = install(cache)
        self._folder = Path(tempfile.mkdtemp(prefix="marketstream-kafka-"))
        self.log = self._folder / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            for last in (False,) * (_TRIES - 1) + (True,):
                free, self.login_port, controller = process.free_ports(3)
                self.port = port or free
                self._configure(controller)
                try:
                    self.start()
                    break
                except KafkaUnavailableError:
                    if last or port or "Address already in use" not in self.log.read_text():
                        raise
        except BaseException:
            self.kill()
            if not self.log.exists():  # else it is named in the error
                shutil.rmtree(self._folder)
            raise

    @property
    def url(self) -> str:
        return f"kafka://127.0.0.1:{self.port}"

    @property
    def login_url(self) -> str:
        """The same broker, where it wants ``USER`` and ``PASSWORD`` (SASL_PLAINTEXT, PLAIN)."""
        return f"kafka://127.0.0.1:{self.login_port}"

    @property
    def address(self) -> Address:
        """What other processes need to know of it."""
        return Address(self.url, self.login_url, self.port)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, or start it again on its data and ports. Returns when it answers."""
        command = self._java("kafka.Kafka", self._folder / "server.properties")
        self._process = process.start(command, self.log)
        if not process.until(self._answers, START_SECONDS, self._process):
            self.kill()
            said = process.last_line(self.log.read_text())
            raise KafkaUnavailableError(f"Kafka did not come up ({said}); see {self.log}")

    def kill(self) -> None:
        """kill -9."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Stop it and remove its data."""
        if self._process:
            process.stop(self._process)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _configure(self, controller: int) -> None:
        data = self._folder / "data"
        shutil.rmtree(data, ignore_errors=True)
        properties = self._folder / "server.properties"
        properties.write_text(
            _PROPERTIES.format(
                port=self.port, login=self.login_port, controller=controller, data=data, user=USER, password=PASSWORD
            )
        )
        self._cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # As an option of its own: the name may begin with a hyphen.
        command = self._java("kafka.tools.StorageTool", "format", f"--cluster-id={self._cluster}", "-c", properties)
        done = _run(command, self._folder, "Java")
        if done.returncode:
            raise KafkaUnavailableError(f"Kafka could not format {data}: {process.last_line(done.stdout)}")

    def _java(self, *arguments: object) -> list[str]:
        return ["java", *_OPTIONS, "-cp", f"{self._libs}/*", *map(str, arguments)]

    def _answers(self) -> bool:
        socket.create_connection(("127.0.0.1", self.port), 1.0).close()
        connection = Connection(self.url, Settings(kafka_security_protocol="PLAINTEXT"))
        with contextlib.suppress(BrokerError), contextlib.closing(connection.make(KafkaAdminClient, 0.0)) as admin:
            return bool(admin.describe_cluster()["cluster_id"] == self._cluster)  # and not another one at this port
        return False


def main() -> int:
    """Run a broker until told to stop."""
    parser = cli.parser("Run a Kafka broker of one node until Ctrl-C; its data goes with it.", "cache")
    parser.add_argument("--port", type=int, default=9092, metavar="P", help="where it listens (default: 9092)")
    arguments: argparse.Namespace = parser.parse_args()
    settings = load({"cache": arguments.cache})
    with cli.stop_on_signals() as stop, contextlib.closing(Server(settings.cache, arguments.port)) as server:
        print(f"{server.url} is up, its log is {server.log}; Ctrl-C stops it and removes its data", flush=True)
        stop.wait()
    return 0


if __name__ == "__main__":
    cli.run(main)
