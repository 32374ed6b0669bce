"""The reader that runs when no other can: a template over the CNN's own findings, labelled as one.

It is no second opinion: it states nothing of its own, measures no confidence, and fusion never moves a number for it.
"""

from modules.pathologies import NAMES
from modules.reasoners.base import Reader, ReaderTask
from modules.records import Reading
from modules.settings import ReaderMode


class DummyReader(Reader):
    """Fills in a template; never fails and sends the film nowhere."""

    mode: ReaderMode = "dummy"
    model = None
    looks_at_film = False

    def read(self, task: ReaderTask) -> Reading:
        """Sum up the CNN's findings, and say that no second reader ran and why."""
        why = " ".join(task.why_not_others) or "MEDGEMMA_MODE asks for none."
        prediction = task.prediction
        detected = tuple(NAMES[k] for k in prediction.ranking if prediction.detected[k])
        return Reading(
            reasoning=f"No second reader ran: {why} {_summary(detected)}", differential=detected, independent=False
        )


def _summary(detected: tuple[str, ...]) -> str:
    if not detected:
        return "The CNN alone detected none of the 14 pathologies above its thresholds; this does not exclude disease."
    return f"The CNN alone detected, the furthest above its threshold first: {', '.join(detected)}."
