"""A local HTTP server that behaves as badly as real ones do: it cuts connections, ignores Range, lies about lengths."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """How the server behaves, and what it was asked. Every path is answered with `content`."""

    content: bytes
    address: str = ""
    etag: str | None = '"one"'
    cut_after: int | None = None
    """Bytes of each answer after which the connection is cut."""
    halt_after: int | None = None
    """Bytes of the first answer after which nothing comes any more, though the connection stays."""
    random_cuts: random.Random | None = None
    """Where the connection is cut at random places, at most a third of the file apart."""
    knows_range: bool = True
    tells_length: bool = True
    told_length: int | None = None
    """A length that it tells instead of the right one."""
    status: int | None = None
    """An error that it answers instead, as long as `n_errors` lasts."""
    n_errors: int = 10**9
    ranges: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    may_go_on: threading.Event = field(default_factory=threading.Event)
    """Ends the wait of an answer that was halted."""

    @property
    def url(self) -> str:
        """Of a file."""
        return f"{self.address}/model.pt"

    def cut(self) -> int | None:
        """Bytes of the next answer after which the connection is cut."""
        if self.random_cuts is not None:
            return self.random_cuts.randint(1, max(1, len(self.content) // 3))
        return self.cut_after


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Run the server."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.address = f"http://127.0.0.1:{http.server_port}"
    try:
        yield server
    finally:
        server.may_go_on.set()
        http.shutdown()
        thread.join()
        http.server_close()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            server.ranges.append(wanted)
            server.paths.append(self.path)
            if server.status is not None and server.n_errors > 0:
                server.n_errors -= 1
                self.send_error(server.status)
                return
            content, first = server.content, 0
            unchanged = self.headers.get("If-Range") in (None, server.etag)
            if wanted and server.knows_range and unchanged:
                first = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if first >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            if server.tells_length:
                length = len(content) - first if server.told_length is None else server.told_length
                self.send_header("Content-Length", str(length))
            if server.etag is not None:
                self.send_header("ETag", server.etag)
            self.end_headers()
            if server.halt_after is not None:
                self.wfile.write(content[first:][: server.halt_after])
                server.halt_after = None
                server.may_go_on.wait()
                return
            self.wfile.write(content[first:][: server.cut()])

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    return Handler
