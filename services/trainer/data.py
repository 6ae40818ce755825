"""What a training reads, batch by batch: the run's records alone, or a mixture of sources, each batch of one."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, Protocol

from services.trainer.batching import batches, steps_per_epoch
from services.trainer.config import TrainingConfig
from services.trainer.draw import source_draws
from services.trainer.fret_index import FretExamples, write_index
from services.trainer.fret_records import Example, Group, Position, RecordSource
from services.trainer.mixture_config import FretSource, Mixture
from services.trainer.prepare import is_prepared, load_prepared, prepare
from services.trainer.sources import DatasetExamples, ExampleSource
from shared.durably import rename_durably, replace_durably
from shared.errors import NotFoundError

OnRows = Callable[[str, int], None]


class TrainingData(Protocol):
    """All that a training reads."""

    total_steps: int

    def batches(self, start: Position) -> Iterator[tuple[list[Example], Position]]:
        """The batches from `start` to the last, each with the position behind it."""

    def facts(self, steps: int) -> dict[str, Any]:
        """What there is to say of it after so many steps, JSON-able; with `task_description`, the query prompt's."""


def open_data(
    config: TrainingConfig,
    records: RecordSource,
    work_dir: Path,
    earlier: Sequence[Path] = (),
    on_rows: OnRows = lambda *_: None,
) -> TrainingData:
    """What the configuration says to read; a mixture's datasets are read, checked and written to `work_dir/mixture`.

    `on_rows` is told of which source how many rows are read so far: of a dataset of the hub it may be hours.

    What an earlier attempt has written of the datasets in its own folder is taken as it is, so that a training which
    resumes reads the same whatever became of them.

    Raises NotFoundError where there are no records to read, InvalidInputError or SettingError for a dataset.
    """
    if config.mixture is None:
        return _RecordsAlone(config, records)
    fret = next((source for source in config.mixture.sources if isinstance(source, FretSource)), None)
    if fret and fret.kinds:
        records = records.of_kinds(fret.kinds)
    index = _indexed(records, fret, work_dir, on_rows) if fret else None
    return _Mixed(config, config.mixture, records, _prepared(config.mixture, [*earlier, work_dir], on_rows), index)


class _RecordsAlone:
    def __init__(self, config: TrainingConfig, records: RecordSource) -> None:
        self._config, self._records = config, records
        self._count = _counted(records)
        self.total_steps = config.num_train_epochs * steps_per_epoch(self._count, config.per_device_train_batch_size)

    def batches(self, start: Position) -> Iterator[tuple[list[Example], Position]]:
        return batches(self._records, self._config, start)

    def facts(self, steps: int) -> dict[str, Any]:
        return {"records": self._count, "task_description": self._records.task_description()}


class _Mixed:
    """A position is a number of batches: the seed says which source each was of, and so how far each source is."""

    def __init__(
        self, config: TrainingConfig, mixture: Mixture, records: RecordSource, folder: Path, index: Path | None
    ) -> None:
        self._mixture, self._records, self._seed = mixture, records, config.seed
        self._size = config.per_device_train_batch_size
        self._facts: dict[str, dict[str, Any]] = {}
        self._sources: list[ExampleSource] = []
        for source in mixture.sources:
            opened: ExampleSource
            if isinstance(source, FretSource):
                assert index is not None  # noqa: S101 - there is one where there is such a source
                opened = fret = FretExamples(source, config, records, index)
                uniform = source.uniform_tasks or source.uniform_kinds
                more: dict[str, Any] = {"groups": fret.groups} if uniform else {}
            else:
                prepared, dataset = load_prepared(folder / source.name)
                opened, more = DatasetExamples(source, config, prepared, dataset), {"rows_left_out": prepared.dropped}
            self._sources.append(opened)
            self._facts[source.name] = {"kind": source.kind, "weight": source.weight, "examples": opened.count, **more}
        self.total_steps = mixture.max_steps or config.num_train_epochs * self._steps_of_an_epoch()

    def batches(self, start: Position) -> Iterator[tuple[list[Example], Position]]:
        done = Counter[int]()
        for step, number in enumerate(self._drawn(self.total_steps)):
            first = done[number] * self._size
            done[number] += 1
            if step >= start.batch:
                places = range(first, first + self._size)
                yield self._sources[number].examples(places), Position(batch=step + 1)

    def facts(self, steps: int) -> dict[str, Any]:
        batches_of = Counter(self._drawn(steps))
        sources = {
            name: {**facts, "batches": batches_of[number]} for number, (name, facts) in enumerate(self._facts.items())
        }
        datasets = [source for source in self._mixture.sources if not isinstance(source, FretSource)]
        if len(datasets) < len(self._mixture.sources):
            records, task_description = self._facts["fret"]["examples"], self._records.task_description()
        else:
            records, task_description = 0, max(datasets, key=lambda source: source.weight).task_description
        return {"records": records, "sources": sources, "task_description": task_description}

    def _steps_of_an_epoch(self) -> int:
        """As many as hold FRet once at its weight; without it every source once.

        The datasets beside FRet may be a thousand times its size: all of them once would be FRet a hundred times.
        """
        steps = [steps_per_epoch(source.count, self._size) for source in self._sources]
        weights = {source.name: source.weight for source in self._mixture.sources}
        for source, of_source in zip(self._mixture.sources, steps, strict=True):
            if isinstance(source, FretSource):
                return ceil(of_source * sum(weights.values()) / source.weight)
        return sum(steps)

    def _drawn(self, steps: int) -> Iterator[int]:
        return islice(source_draws([source.weight for source in self._mixture.sources], self._seed), steps)


def _prepared(mixture: Mixture, folders: Sequence[Path], on_rows: OnRows) -> Path:
    """The folder `mixture` in one of `folders` if there is one, else the last's, once it is complete.

    A dataset that another has whole in its unfinished one is linked, not read again: that may be hours. It stays there
    too, for an attempt that has lost its lease may be at it still.
    """
    for folder in folders:
        if (folder / "mixture").is_dir():
            return folder / "mixture"
    unfinished, target = folders[-1] / "unfinished-mixture", folders[-1] / "mixture"
    unfinished.mkdir(parents=True, exist_ok=True)
    for source in mixture.sources:
        if isinstance(source, FretSource):
            continue
        place, partly = unfinished / source.name, unfinished / f".{source.name}"
        whole = next((each for each in folders if is_prepared(each / unfinished.name / source.name)), None)
        if whole == folders[-1]:
            continue
        shutil.rmtree(partly, ignore_errors=True)
        if whole is None:
            prepare(source, partly, partial(on_rows, source.name))
        else:
            shutil.copytree(whole / unfinished.name / source.name, partly, copy_function=os.link)
        replace_durably(partly, place)
    rename_durably(unfinished, target)
    return target


def _indexed(records: RecordSource, source: FretSource, work_dir: Path, on_rows: OnRows) -> Path:
    """This attempt's own index, for the run may have got more records since the last; its peers take the same."""
    target, partly = work_dir / "fret-index", work_dir / "unfinished-index"
    if not target.is_dir():
        shutil.rmtree(partly, ignore_errors=True)
        group: Group = "kind" if source.uniform_kinds else "task"
        write_index(records, group, _counted(records), partly, partial(on_rows, "fret"))
        rename_durably(partly, target)
    return target


def _counted(records: RecordSource) -> int:
    count = records.count()
    if count == 0:
        raise NotFoundError(
            "there are no records to train on: `fretwork run status` says what became of the run's items"
        )
    return count
