"""A small web server: ``/metrics`` for Prometheus, ``/healthz`` for whoever restarts programs."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from pipeline.errors import SettingsError


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing. A line for every scrape would drown the lines that matter."""


@contextmanager
def serving(
    registry: CollectorRegistry, host: str, port: int, healthy: Callable[[], bool], flag: str = "--metrics-port"
) -> Iterator[int]:
    """Serve in a thread of its own until the block ends.

    Parameters
    ----------
    registry
        Holds the metrics of ``/metrics``.
    host, port
        The address to listen on. Port 0 takes a free port.
    healthy
        Whether ``/healthz`` answers 200, and not 503.
    flag
        The flag that sets the port. The error names it.

    Yields
    ------
    int
        The port.

    Raises
    ------
    SettingsError
        If it cannot listen on the address.
    """
    metrics = make_wsgi_app(registry)

    def app(environment: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environment.get("PATH_INFO") == "/metrics":
            page: Iterable[bytes] = metrics(environment, start_response)
            return page
        if environment.get("PATH_INFO") == "/healthz":
            status = "200 OK" if healthy() else "503 Service Unavailable"
        else:
            status = "404 Not Found"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{status}\n".encode()]

    try:
        server = make_server(host, port, app, ThreadingWSGIServer, _Quiet)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another {flag}, or 0 for a free one"
        ) from error
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
