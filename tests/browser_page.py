"""The dashboard's page in a browser as its tests use it, and a scripted API that it can ask."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
from playwright.sync_api import Browser, Dialog

from benchmarks.dashboard import Room
from benchmarks.servers import HOST
from tests.fake_server import FakeServer


@contextmanager
def opened(browser: Browser, url: str) -> Iterator[Room]:
    """Open the page; at the end it must have asked nobody else, shown no dialog and reported no error."""
    room = Room(browser, url)
    dialogs: list[str] = []

    def seen(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    room.page.on("dialog", seen)
    yield room
    room.settle()
    found = (room.other_hosts, room.errors, dialogs)
    assert found == (set(), [], []), found
    room.page.close()


@contextmanager
def scripted_api(fake: FakeServer) -> Iterator[str]:
    """Serve what a `FakeServer` answers on a port."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            response = fake(httpx.Request(self.command, f"http://{HOST}{self.path}", content=body))
            self.send_response(response.status_code)
            for name in response.headers.keys() & {"content-type", "content-length"}:
                self.send_header(name, response.headers[name])
            self.end_headers()
            for part in response.stream:  # as it comes: a test may hold a stream
                self.wfile.write(part)

        do_GET = do_POST = answer  # noqa: N815 - the names that http.server looks for

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((HOST, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
