"""Asynchronous successive halving as Ray Tune's scheduler; the study decides."""

from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
from ray.tune.schedulers import FIFOScheduler

from tune_dlrml.errors import GroupDiedError
from tune_dlrml.search.tune.searcher import StudySearcher

DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, GroupDiedError)
"""Exceptions with which Ray, and a slot whose new group dies at once, report dead processes and nodes."""


class StudyScheduler(FIFOScheduler):  # type: ignore[misc]
    """Passes Tune's results on to the study, through the searcher, and the study's verdicts back.

    Tune asks the scheduler before it notifies the searcher, and does not notify the searcher of a result on which the
    scheduler stops the trial. So results go through here, and the searcher's own notification does nothing.

    Args:
        searcher: The searcher of the same run.
    """

    _supports_buffered_results = False

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP or CONTINUE, as the study decides."""
        verdict = self._searcher.receive(trial.trial_id, result)
        return str(self.CONTINUE if verdict == "continue" else self.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Keep the exception, which Tune does not pass to the searcher, and whether the slot died."""
        text = Path(trial.error_file).read_text() if trial.error_file else ""
        _, _, exception = text.partition("\n")  # after Tune's own line with the time
        # Trial.get_pickled_error looks in the storage, where Tune has not copied the file yet.
        pickled = trial.pickled_error_file
        lost = pickled is not None and isinstance(cloudpickle.loads(Path(pickled).read_bytes()), DEATHS)
        self._searcher.note_error(trial.trial_id, exception, lost=lost)
