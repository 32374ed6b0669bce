"""What is done as soon as the process is told to end, before the server waits for the answers that are under way."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def when_told_to_end(act: Callable[[], object]) -> Iterator[None]:
    """Call `act` on the event loop at a signal that ends the server, which then does what it does without this.

    Signals reach the main thread alone: a server in another one is told to end in another way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def told(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(act)  # not here: whatever the signal interrupted may hold a lock that `act` needs
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in SIGNALS:
        signal.signal(number, told)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
