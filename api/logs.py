"""One JSON object a line on standard error; the fields are chosen where they are logged and hold no patient data."""

import json
import logging
import sys
from datetime import UTC, datetime

LOGGERS = ("assistant", "modules")


class JsonFormatter(logging.Formatter):
    """Formats time, level, event and the `fields` given with it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps({**line, **getattr(record, "fields", {})}, default=str)


def configure(level: str) -> None:
    """Send the project's logs to standard error, once, and silence the server's own lines about addresses."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(level.upper())
        if not logger.handlers:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(JsonFormatter())
            logger.addHandler(handler)
        logger.propagate = False
    # pydicom's messages may repeat what a header says
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL + 1)  # quotes bytes of a broken form
    # uvicorn's access log repeats the address asked for, with whatever somebody typed into it
    logging.getLogger("uvicorn.access").disabled = True
