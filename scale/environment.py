"""What the processes of Ray have to know on each machine, before they start."""

import os

from modules.settings import PROJECT_ROOT


def environment() -> dict[str, str]:
    """Return variables: where this project lies, what stands before Ray Serve, and that nothing is reported."""
    found = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([str(PROJECT_ROOT), *found])),
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token"),  # a cluster is reached with its token alone
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "scale.doorway:middlewares",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
