"""Hands an evaluation over to the library mteb, which fetches its tasks' data and measures the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sentence_transformers import SentenceTransformer

from services.trainer.compare import Measured
from services.trainer.embed import OnProgress
from shared.errors import SettingError


@dataclass(frozen=True, slots=True)
class MtebTaskSet:
    """Tasks of the library, of whose items it says nothing: there are figures of whole tasks alone."""

    tasks: tuple[Any, ...]
    main_metric = "mean"

    @property
    def sizes(self) -> dict[str, int]:
        return {"tasks": len(self.tasks)}

    @property
    def item_names(self) -> list[dict[str, Any]]:
        return []

    @property
    def text_count(self) -> int:
        return 0

    def measure(self, model: SentenceTransformer, dims: Sequence[int], on_progress: OnProgress) -> dict[int, Measured]:
        """Each task's main score by the task's name, and their mean, at every dimension."""
        import mteb

        found = {}
        for dim in dims:
            model.truncate_dim = dim
            results = mteb.evaluate(
                model, self.tasks, cache=None, co2_tracker=False, show_progress_bar=False
            ).task_results
            scores = {result.task_name: float(result.get_score()) for result in results}
            found[dim] = Measured({self.main_metric: sum(scores.values()) / len(scores), **scores}, [])
        model.truncate_dim = None
        return found

    def differences(self, before: Measured, after: Measured, seed: int) -> dict[str, dict[str, Any]]:
        """None: an interval needs the figures of single items."""
        return {}


def find_tasks(names: Sequence[str]) -> MtebTaskSet:
    """The tasks of these names; their data has been fetched.

    Raises SettingError: mteb is not installed, has no task of that name, or cannot fetch its data.
    """
    try:
        import mteb
    except ImportError as error:
        raise SettingError(
            f"--mteb needs the library mteb, which cannot be imported here ({error}): install it beside the trainer "
            "with `pip install 'fretwork[mteb]'`, or measure files of your own: --beir, --sts or --classification"
        ) from error
    try:
        tasks = tuple(mteb.get_task(name) for name in names)
    except KeyError as error:
        raise SettingError(f"mteb lacks a task that was asked for: {error.args[0]}") from error
    for name, task in zip(names, tasks, strict=True):
        try:
            task.load_data()
        except Exception as error:  # whatever the libraries raise for a hub out of reach or a data set that is gone
            raise SettingError(
                f"the data of mteb's task {name} cannot be had ({type(error).__name__}: {error}): it comes from "
                "the model hub, which this machine has to reach, or to have in its cache (HF_HOME)"
            ) from error
        task.unload_data()  # measuring loads it again, from the disk, when its turn comes
    return MtebTaskSet(tasks)
