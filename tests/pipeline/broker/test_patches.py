"""What is patched in the Kafka client, where it takes no broker to see that the client still needs it."""

import ast
import inspect
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import kafka
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, errors
from kafka.future import Future
from kafka.net.compat import KafkaNetClient
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport
from kafka.producer.transaction_manager import TransactionManager

from pipeline.broker.kafka import patches

PACKAGE = Path(patches.__file__).parent
PUBLIC = {"kafka", "kafka.admin", "kafka.consumer", "kafka.errors", "kafka.producer", "kafka.structs"}

# One place for all of it


def modules() -> Iterator[tuple[Path, ast.AST]]:
    for path in PACKAGE.glob("*.py"):
        if path.name != "patches.py":
            yield path, ast.parse(path.read_text())


def test_no_other_module_touches_a_private_name_of_another_object() -> None:
    found = [
        f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and ast.unparse(node.value) != "self"
    ]
    assert found == []


def test_no_other_module_imports_from_the_depths_of_the_library() -> None:
    imported = {
        name
        for _, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    assert {name for name in imported if name.partition(".")[0] == "kafka"} <= PUBLIC
    assert "kafka" in imported


# Connections


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{unused.getsockname()[1]}"


@pytest.mark.parametrize("kind", [KafkaAdminClient, KafkaConsumer, KafkaProducer])
def test_only_the_log_of_the_library_says_why_a_connection_failed(nobody: str, kind: Any) -> None:
    patches.failures.last = ""
    with pytest.raises(errors.KafkaTimeoutError) as caught:
        patches.make_client(kind, bootstrap_servers=nobody, bootstrap_timeout_ms=300)
    assert "REFUSED" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert "REFUSED" in patches.failures.last


@pytest.mark.parametrize("kind", [KafkaAdminClient, KafkaConsumer])
def test_a_client_that_cannot_connect_leaves_a_thread_behind(nobody: str, kind: Any) -> None:
    made: list[KafkaNetClient] = []

    def network(**given: object) -> KafkaNetClient:
        made.append(KafkaNetClient(**given))
        return made[0]

    before = threading.active_count()
    with pytest.raises(errors.KafkaTimeoutError):
        kind(kafka_client=network, bootstrap_servers=nobody, bootstrap_timeout_ms=300)
    assert threading.active_count() > before
    made[0].close()
    with pytest.raises(errors.KafkaTimeoutError):
        patches.make_client(kind, bootstrap_servers=nobody, bootstrap_timeout_ms=300)
    assert threading.active_count() == before


class Reader:
    """The protocol at the end of a transport: keeps what comes."""

    _sensors = None

    def __init__(self) -> None:
        self.received, self.ended = b"", Future()

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, _error: Exception | None) -> None:
        self.ended.success(None)


def context(side: int) -> ssl.SSLContext:
    """TLS without a certificate."""
    made = ssl.SSLContext(side)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    return made


def plain(network: NetworkSelector, ours: socket.socket, theirs: socket.socket) -> tuple[Any, socket.socket]:
    return KafkaTCPTransport(network, ours), theirs


def encrypted(network: NetworkSelector, ours: socket.socket, theirs: socket.socket) -> tuple[Any, socket.socket]:
    transport = KafkaSSLTransport(network, ours, ssl_context=context(ssl.PROTOCOL_TLS_CLIENT))
    with ThreadPoolExecutor(1) as pool:
        peer = pool.submit(context(ssl.PROTOCOL_TLS_SERVER).wrap_socket, theirs, server_side=True)
        network.run(transport.handshake)
        return transport, peer.result()


def read_to_the_end(connected: Callable[..., tuple[Any, socket.socket]]) -> bytes:
    """What a client reads of a broker that says something and hangs up at once."""
    reader = Reader()
    with ExitStack() as stack:
        network = stack.enter_context(closing(NetworkSelector()))
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        transport, peer = connected(network, ours, theirs)
        stack.callback(transport.abort)
        with closing(peer):
            peer.sendall(b"the login was refused")
        transport.set_protocol(reader)
        transport.resume_reading()
        network.poll(timeout_ms=10_000, future=reader.ended)
        assert reader.ended.is_done
    return reader.received


@pytest.mark.parametrize(("kind", "connected"), [(KafkaTCPTransport, plain), (KafkaSSLTransport, encrypted)])
def test_bytes_that_come_together_with_the_end_of_a_connection_are_dropped(
    kind: Any, connected: Callable[..., tuple[Any, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_to_the_end(connected) == b"the login was refused"
    monkeypatch.setattr(kind, "_sock_recv", kind._sock_recv.__wrapped__)
    assert read_to_the_end(connected) == b""


# What the public interface lacks


def test_the_cooperative_assignor_is_in_no_public_module_and_no_default() -> None:
    [assignor] = patches.ASSIGNORS
    assert not any(hasattr(module, assignor.__name__) for module in (kafka, kafka.consumer, kafka.structs))
    assert assignor not in KafkaConsumer.DEFAULT_CONFIG["partition_assignment_strategy"]


@pytest.mark.parametrize("name", ["send_offsets_to_transaction", "commit_transaction", "abort_transaction"])
def test_the_steps_of_a_transaction_cannot_be_given_a_time_limit(name: str) -> None:
    assert not [each for each in inspect.signature(getattr(KafkaProducer, name)).parameters if "time" in each]


def test_after_a_first_error_the_library_raises_others_that_do_not_tell_its_kind() -> None:
    manager = TransactionManager("id")
    manager.transition_to_fatal_error(errors.ProducerFencedError())
    with pytest.raises(errors.KafkaError) as caught:
        manager.begin_transaction()
    assert not isinstance(caught.value, errors.ProducerFencedError)
    assert isinstance(manager.last_error, errors.ProducerFencedError)
