"""A local web server with scripted answers."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A server that gives the answers of a path one after the other, and then repeats the last."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []  # path and headers

    def says(self, path: str, *answers: Answer) -> str:
        """Set the answers of a path; return its URL."""
        self.answers[path] = list(answers)
        return self.url + path

    @property
    def ranges(self) -> list[str | None]:
        """The Range header of each request."""
        return [headers.get("Range") for _, headers in self.requests]


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port of 127.0.0.1, stopped at the end."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests.append((self.path, dict(self.headers)))
            answers = server.answers.get(self.path, [status(404)])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            answer(self)

        def log_message(self, *_args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_place: object) -> None:
            """Ignore clients that close the connection early."""

    http = Quiet(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def begin(handler: BaseHTTPRequestHandler, code: int, **headers: object) -> None:
    """Send the status line and the headers; underscores in names stand for hyphens."""
    handler.send_response(code)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()


def status(code: int) -> Answer:
    """An empty answer."""
    return lambda handler: begin(handler, code, Content_Length=0)


def redirect(location: str, code: int = 302) -> Answer:
    """A redirect."""
    return lambda handler: begin(handler, code, Content_Length=0, Location=location)


def sends(content: bytes, **headers: object) -> Answer:
    """Send exactly these bytes with the given headers, and close the connection."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        begin(handler, 200, **headers)
        handler.wfile.write(content)

    return answer


def file(content: bytes, cut: int | None = None) -> Answer:
    """A file, or the requested range of it; ``cut`` closes the connection after that many bytes."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if wanted is None:
            begin(handler, 200, Content_Length=len(content))
            handler.wfile.write(content[:cut])
            return
        start = int(wanted[1])
        place = f"bytes {start}-{len(content) - 1}/{len(content)}"
        begin(handler, 206, Content_Length=len(content) - start, Content_Range=place)
        handler.wfile.write(content[start:][:cut])

    return answer


def without_ranges(content: bytes, cut: int | None = None) -> Answer:
    """A file from a server without ranges."""
    return sends(content[:cut], Content_Length=len(content))
