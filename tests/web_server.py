"""An HTTP server that misbehaves when it is told to."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any


@dataclass
class Server:
    """Serves `files`; `misbehave(path, request number)` names the fault, if any; `log` holds each Range."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    log: list[tuple[str, str | None]] = field(default_factory=list)
    misbehave: Callable[[str, int], str] = lambda path, number: ""
    released: Event = field(default_factory=Event)


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            wanted = self.headers.get("Range")
            server.log.append((name, wanted))
            what = server.misbehave(name, sum(logged == name for logged, _ in server.log))
            if what == "hang":
                server.released.wait(30)
                return
            content = server.files.get(name)
            if content is None:
                self.send_error(404)
                return
            if what == "garbage":
                content = b"x" * len(content)
            start = int(re.findall(r"\d+", wanted)[0]) if wanted and what != "no range" else 0
            if start and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            body = content[start:]
            self.wfile.write(body[: len(body) // 2] if what == "die" else body)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay quiet when a client hangs up: some tests do so on purpose."""


@contextmanager
def serving() -> Iterator[Server]:
    running = Server()
    with _QuietServer(("127.0.0.1", 0), _handler(running)) as http:
        running.url = f"http://127.0.0.1:{http.server_address[1]}/"
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.released.set()
        http.shutdown()
        thread.join()
