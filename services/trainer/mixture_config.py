"""What a training reads beside its run's records, in words: the sources of a mixture. Frozen values; no torch here.

The paper (arXiv 2403.20327) trains on FRet and on NQ, HotpotQA, FEVER, MedMCQA, SNLI, MNLI and classification sets, and
names no weights: all weights are the user's or this project's.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Drawn(_Frozen):
    weight: float = Field(1.0, gt=0, description="how often a batch is of this source, relative to the others' weights")
    same_tower_negatives: bool | None = Field(
        None, description="for this source's batches; the training's own setting where it is left out"
    )
    in_batch_negatives: bool = Field(
        True, description="whether the positives of a batch's other queries are negatives; else each has its own alone"
    )


class FretSource(_Drawn):
    """The run's FRet records."""

    kind: Literal["fret"]
    name: Literal["fret"] = "fret"
    uniform_tasks: bool = Field(
        False,
        description="each example's task description is drawn first, all alike and the rare ones as one, and then a "
        "record that has it",
    )
    uniform_kinds: bool = Field(
        False, description="the same by kind of query: sentence, title, keywords, or what an LLM's task asks for"
    )
    kinds: tuple[str, ...] = Field((), description="queries of these kinds alone; all if left out")

    @model_validator(mode="after")
    def _draws_in_one_way(self) -> Self:
        if self.uniform_tasks and self.uniform_kinds:
            raise ValueError("set one of `uniform_tasks` and `uniform_kinds`")
        return self


class _DatasetSource(_Drawn):
    """A dataset in a file, in a folder or on the hub."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)
    task_description: str = Field(
        min_length=1, description="with `--prompts gecko` what stands before every query: `task: … | query: …`"
    )
    symmetric: bool = Field(False, description="targets are written as queries are, with the task description")
    path: str | None = Field(
        None,
        description="a .csv, .tsv, .jsonl or .parquet file, a folder that `save_to_disk` wrote, or a copy of a "
        "dataset's repository",
    )
    hub: str | None = Field(None, description="the dataset's name on the hub; it is read as a stream")
    config: str | None = Field(None, description="which configuration (subset) of it, where it has several")
    split: str = "train"
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="of .csv; a tab-separated file has no quotes"
    )
    columns: tuple[str, ...] | None = Field(
        None, description="the names of the first columns, for a .csv file without a header"
    )

    @model_validator(mode="after")
    def _is_in_one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("name either a `path` or a `hub` dataset")
        if (self.delimiter or self.columns) and not (self.path or "").lower().endswith((".csv", ".tsv")):
            raise ValueError("`delimiter` and `columns` are of .csv and .tsv files")
        return self


class PairFields(_Frozen):
    query: str = "query"
    positive: str = Field("positive", description="a text, or a list of texts: an example for each")
    title: str | None = Field(None, description="the positive's title")


class PairSource(_DatasetSource):
    """Queries and what answers them."""

    kind: Literal["pair"]
    fields: PairFields = PairFields()


class TripletFields(_Frozen):
    """`positive` and `negatives`, or the `options` of a multiple choice and the number of its `answer`, from 0.

    No title: the positive's alone would tell it from its negatives.
    """

    query: str = "query"
    positive: str | None = Field(None, description="a text, or a list of texts: an example for each")
    negatives: tuple[str, ...] = Field((), description="each a text or a list of texts")
    options: tuple[str, ...] = ()
    answer: str | None = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        triplet, choice = bool(self.positive and self.negatives), bool(self.options and self.answer)
        if triplet == choice or (choice and (self.positive or self.negatives)):
            raise ValueError("map either `positive` and `negatives`, or `options` and `answer`")
        return self


class TripletSource(_DatasetSource):
    """Queries with positives and hard negatives."""

    kind: Literal["triplet"]
    fields: TripletFields = TripletFields(positive="positive", negatives=("negative",))


class ClassificationFields(_Frozen):
    text: str = "text"
    label: str = "label"


class ClassificationSource(_DatasetSource):
    """Texts with labels: the positive is another text of the label, the negative a text of another, drawn each time."""

    kind: Literal["classification"]
    symmetric: bool = True
    fields: ClassificationFields = ClassificationFields()


class ScoredPairFields(_Frozen):
    first: str = "sentence1"
    second: str = "sentence2"
    score: str = "score"


class ScoredPairSource(_DatasetSource):
    """Pairs with a degree of similarity, as in STS; those from `min_score` on are positives, the rest is left out."""

    kind: Literal["scored-pair"]
    symmetric: bool = True
    min_score: float = Field(description="on the dataset's own scale: 4 is a usual choice where 5 is the same meaning")
    fields: ScoredPairFields = ScoredPairFields()


class NliFields(_Frozen):
    premise: str = "premise"
    hypothesis: str = "hypothesis"
    label: str = "label"


class NliSource(_DatasetSource):
    """Premises, with what follows from them as positives and what contradicts them as hard negatives."""

    kind: Literal["nli"]
    symmetric: bool = True
    fields: NliFields = NliFields()
    entailment: str | int = Field(0, description="the label of a hypothesis that follows")
    contradiction: str | int = Field(2, description="the label of a hypothesis that contradicts")


class ListFields(_Frozen):
    """Each column holds an item of the list or all of them; the passages of all columns are one list, as the scores."""

    query: str = "query"
    passages: tuple[str, ...] = Field(("passages",), min_length=1, description="each a text or a list of texts")
    scores: tuple[str, ...] = Field(
        ("scores",), min_length=1, description="each a number or a list of numbers, one for every passage"
    )


class ListSource(_DatasetSource):
    """Queries with passages and a teacher's scores of them, on any scale: the highest is the positive."""

    kind: Literal["list"]
    fields: ListFields = ListFields()


DatasetSource = PairSource | TripletSource | ClassificationSource | ScoredPairSource | NliSource | ListSource
Source = Annotated[FretSource | DatasetSource, Field(discriminator="kind")]


class Mixture(_Frozen):
    """The sources that batches are drawn from, each batch from one of them."""

    sources: tuple[Source, ...] = Field(min_length=1)
    max_steps: int | None = Field(
        None,
        ge=1,
        description="steps in all; if left out, as many as hold FRet once (without it: every source once), times "
        "num_train_epochs",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        twice = [name for name, count in Counter(source.name for source in self.sources).items() if count > 1]
        if twice:
            raise ValueError(f"two sources have the name {twice[0]!r}")
        return self
