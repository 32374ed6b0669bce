"""`python -m scale.batch FILMS --out TABLE`: the command of `python -m batch`, on Ray's workers.

Same options, table, journal and exit status; a run that one of the two has begun, the other goes on with. With
`RAY_ADDRESS` the workers are those of a cluster, whose machines must find the films under the same paths.
"""

from collections.abc import Sequence

from batch.command import main as command
from scale.workers import RayPool

PROGRAM = "python -m scale.batch"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return command(argv, program=PROGRAM, pool=RayPool)


if __name__ == "__main__":
    raise SystemExit(main())
