"""What decides a training or an evaluation: frozen values, kept with it in the ledger. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from services.trainer.mixture_config import FretSource, ListSource, Mixture, PairSource, ScoredPairSource
from shared.list_scores import JudgedBy
from shared.models import WHEEL_MODEL

USUAL_DIMS = (256, 128, 64)
USUAL_TEMPERATURE = 0.05
USUAL_WEIGHT = 0.25  # of the smaller ones, which begin on the principal axes and have less to learn

Loss = Literal["contrastive", "listwise", "both"]
ListLoss = Literal["kl", "margin-mse"]


class Prompts(StrEnum):
    OWN = "own"
    GECKO = "gecko"
    NONE = "none"


class TrainingConfig(BaseModel):
    """Everything, beside the records, that decides the trained weights.

    The paper (arXiv 2403.20327) names no batch size, learning rate, temperature, lengths or Matryoshka weights: these
    defaults are this project's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_name_or_path: str = Field(
        WHEEL_MODEL, description="the base: a SentenceTransformer folder, a hub name or all-MiniLM-L6-v2"
    )
    prompts: Prompts = Field(
        Prompts.OWN,
        description="how texts are written. own: behind the base's own prompts, where it has any; gecko: as in the "
        "paper, `task: … | query: …` and `title: … | text: …`, which a base has to learn; none: bare",
    )
    per_device_train_batch_size: int = Field(
        32, ge=2, description="queries per step; the positive of each is a negative of the others"
    )
    num_train_epochs: int = Field(1, ge=1, description="passes over the records")
    learning_rate: float = Field(5e-5, gt=0, description="the highest, after warm-up; it then falls linearly to 0")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    temperature: float | None = Field(
        None,
        gt=0,
        description="τ of the loss; sentence-transformers' `scale` is 1/temperature. By default the one that suits the "
        "base, found with the projection; 0.05 where there is none",
    )
    loss: Loss = Field(
        "both",
        description="contrastive: Gecko's, each query's positive against all else in the batch; listwise: the "
        "teacher's scores of each query's candidates; both: listwise + contrastive-weight * contrastive. A dataset "
        "of a mixture that has no lists is trained on contrastively",
    )
    contrastive_weight: float = Field(0.1, ge=0, description="what the contrastive part of `--loss both` weighs")
    list_length: int = Field(
        8,
        ge=2,
        le=100,
        description="candidates of each query that a step reads: the best, the last and some between. Queries that "
        "share candidates come together, so that a step encodes two fifths as many passages at most",
    )
    list_loss: ListLoss = Field(
        "kl", description="kl: divergence from the teacher's distribution; margin-mse: error of its score differences"
    )
    judged_by: JudgedBy = Field(
        "both",
        description="which of the teacher's scores are read: both (query likelihood and relevance, standardised), ql "
        "or rc alone, or the ranks by both",
    )
    retriever_weight: float = Field(
        1.0, ge=0, description="what the retriever's own score weighs in the teacher's, beside the judges' 1"
    )
    positive_bonus: float = Field(
        1.0,
        ge=0,
        description="deviations that the record's positive is raised by in the teacher's scores: the query was written "
        "from it, or the judge put it first",
    )
    teacher_temperature: float = Field(
        0.2, gt=0, description="of the teacher's distribution, whose scores have a deviation of 1 within a list"
    )
    near_positive: float = Field(
        0.5,
        ge=0,
        description="a passage is no contrastive negative where the teacher's score of it is not below the "
        "positive's by so many deviations",
    )
    hard_negatives: bool = Field(True, description="each query's own hard negatives count")
    same_tower_negatives: bool = Field(
        False, description="the batch's other queries count as negatives, as in the paper; it cost the demo 0.013"
    )
    soft_mask_margin: float | None = Field(
        None,
        ge=0,
        description="a negative nearer than the positive by more than this cosine is left out (0.1 in Qwen3)",
    )
    hardness: float = Field(
        0.0, ge=0, description="α: a query's own hard negative weighs e^(α · its cosine) (5 in EmbeddingGemma)"
    )
    spread_out: float = Field(
        0.0, ge=0, description="λ of the spread-out regulariser: the mean squared cosine of two different texts"
    )
    matryoshka_dims: tuple[int, ...] | None = Field(
        None,
        description="dimensions trained beside the model's full one, which always is: 256,128; by default those of "
        "256, 128 and 64 that are smaller",
    )
    matryoshka_weights: tuple[float, ...] | None = Field(
        None,
        description="the loss's weight for each of matryoshka-dims, beside the full dimension's 1: 0.5,0.3,0.2; by "
        "default each is 0.25",
    )
    train: Literal["both", "queries"] = Field(
        "both",
        description="both: one encoder for queries and passages; queries: passages are encoded by the base as it is, "
        "so that an index of its vectors stays valid, and the queries' encoder is tuned to it",
    )
    projection: bool = Field(
        True,
        description="fit a linear layer to the base's vectors of the run's queries and passages before the encoder is "
        "tuned: on their principal axes, so that short vectors are better; the folder has a Dense module more",
    )
    query_max_len: int = Field(64, ge=4, description="tokens of a query, its prompt included; the rest is cut")
    passage_max_len: int = Field(
        128,
        ge=4,
        description="tokens of a passage; the rest is cut. A base may have more positions than its folder reads "
        "(all-MiniLM-L6-v2: 512 and 256); the exported model reads this far at least",
    )
    mask_probability: float = Field(
        0.9, ge=0, le=1, description="how often a query that stands verbatim in its passage is taken out of it"
    )
    averaging: float = Field(
        0.0, ge=0, lt=1, description="the weights of this last share of the steps are averaged, a soup of checkpoints"
    )
    interpolation: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the tuned weights in the exported ones, the rest is the base's; by default the one up to "
        "0.5 that does best on records held out for it",
    )
    kept_tokens: int | None = Field(
        None,
        ge=0,
        description="tokens of a step whose activations are held at once; the rest is encoded twice (GradCache), so a "
        "batch may be of any size. Lower it where memory runs out; by default 8192 on a CPU, 65536 on a GPU",
    )
    seed: int = Field(0, description="seeds the order of the records and the masks")
    mixture: Mixture | None = Field(None, description="what else to train on; the run's FRet records alone by default")
    checkpoint_every_s: float = Field(60.0, ge=0, description="seconds between checkpoints; 0: after every step")
    onnx: bool = Field(False, description="write the encoder as onnx/model.onnx too, for runtimes without torch")

    @field_validator("mixture")
    @classmethod
    def _all_have_negatives(cls, mixture: Mixture | None, settings: ValidationInfo) -> Mixture | None:
        """Without any negative a query's loss is 0, whatever the weights."""
        for source in mixture.sources if mixture else ():
            own = settings.data.get("hard_negatives") and not isinstance(source, PairSource | ScoredPairSource)
            same_tower = source.same_tower_negatives
            if same_tower is None:
                same_tower = settings.data.get("same_tower_negatives")
            # a list's scores teach without any negative
            listed = isinstance(source, ListSource) and settings.data.get("loss") != "contrastive"
            if not (source.in_batch_negatives or own or same_tower or listed):
                raise ValueError(
                    f"in_batch_negatives: false leaves the queries of the source {source.name} no negatives: it has "
                    "none of its own, or --no-hard-negatives leaves them out. Set its in_batch_negatives or "
                    "same_tower_negatives to true"
                )
        return mixture

    @model_validator(mode="after")
    def _index_stays_valid(self) -> Self:
        if self.train == "queries" and self.prompts != Prompts.OWN:
            raise ValueError(
                "--train queries keeps the base's vectors of passages, which stand behind its own prompts: leave "
                "--prompts at own"
            )
        return self

    @property
    def projects(self) -> bool:
        """Whether a projection is fitted: to records alone, for datasets of a mixture may be of many kinds of texts."""
        return self.projection and self.reads_records

    @property
    def usual_temperature(self) -> float:
        """The temperature, where none was given and none is fitted the usual one."""
        return USUAL_TEMPERATURE if self.temperature is None else self.temperature

    @model_validator(mode="after")
    def _dims_are_sound(self) -> Self:
        dims, weights = self.matryoshka_dims or (), self.matryoshka_weights
        if len(set(dims)) != len(dims) or any(dim < 1 for dim in dims):
            raise ValueError(f"--matryoshka-dims takes different numbers above 0, and got {_listed(dims)}")
        if weights is not None and (len(weights) != len(dims) or any(weight < 0 for weight in weights)):
            raise ValueError(
                "--matryoshka-weights takes a number, not below 0, for each of --matryoshka-dims, to be named too, "
                f"and got {_listed(weights)} for {_listed(dims)}"
            )
        return self

    @property
    def reads_records(self) -> bool:
        """Whether the run's FRet records are trained on."""
        return self.mixture is None or any(isinstance(source, FretSource) for source in self.mixture.sources)

    @property
    def reads_lists(self) -> bool:
        return self.loss != "contrastive"

    def weight_by_dim(self, full_dim: int) -> dict[int, float]:
        """The loss's weight per dimension, the largest first; the model's full dimension is always among them."""
        dims = self.matryoshka_dims
        if dims is None:
            dims = tuple(dim for dim in USUAL_DIMS if dim < full_dim)
        by_dim = {full_dim: 1.0, **dict(zip(dims, self.matryoshka_weights or (USUAL_WEIGHT,) * len(dims), strict=True))}
        return dict(sorted(by_dim.items(), reverse=True))


def _listed(values: Iterable[float]) -> str:
    return ",".join(map(str, values)) or "none"


class BeirFolder(BaseModel):
    """Judged queries over passages, in BEIR's form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["beir"] = "beir"
    path: str = Field(description="a folder: corpus.jsonl, queries.jsonl, qrels/{split}.tsv")
    split: str = Field("test", description="which of the folder's qrels")
    ignore_identical_ids: bool = Field(
        False,
        description="no query finds the passage that has its id, as BEIR has it, and mteb for ArguAna and Quora; not "
        "where ids of both are numbers",
    )


class StsFile(BaseModel):
    """Pairs of sentences with people's scores of how similar they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["sts"] = "sts"
    path: str = Field(
        description="a .csv, .tsv, .jsonl or .parquet: sentence1, sentence2, score; or a file of STS-B as published"
    )


class ClassificationFolder(BaseModel):
    """Labelled texts: some to fit a classifier on the embeddings, others to measure it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["classification"] = "classification"
    path: str = Field(description="a folder: train and test, each a .csv, .tsv, .jsonl or .parquet with text and label")
    samples_per_label: int = Field(
        8,
        ge=1,
        description="training texts per label in each of the 10 experiments; MTEB has 8, for some tasks 16 or 32",
    )


class MtebTasks(BaseModel):
    """Tasks that the library mteb fetches and measures itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mteb"] = "mteb"
    names: tuple[str, ...] = Field(min_length=1, description="as mteb writes them, e.g. STSBenchmark")


class EvaluationConfig(BaseModel):
    """A model, perhaps a baseline, and what they are measured on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="a SentenceTransformer folder, a hub name or all-MiniLM-L6-v2")
    baseline: str | None = Field(None, description="the model to compare with, as before against after")
    data: BeirFolder | StsFile | ClassificationFolder | MtebTasks = Field(discriminator="kind")
    dims: tuple[int, ...] | None = Field(
        None,
        description="dimensions to measure at; by default the Matryoshka ones that the model's config.json names, or "
        "the full one (which alone by mteb, since it encodes anew for each)",
    )
    seed: int = Field(0, description="seeds the bootstrap of the confidence intervals")
    per_query_file: str | None = Field(
        None, description="a file that gets a JSON line for every query, pair or test text and dimension"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_stored_before(cls, values: Any) -> Any:
        """An evaluation that was started when there were BEIR folders alone."""
        if isinstance(values, dict) and "beir_dir" in values:
            values = dict(values)
            values["data"] = {"kind": "beir", "path": values.pop("beir_dir"), "split": values.pop("split", "test")}
        return values

    @model_validator(mode="after")
    def _has_items(self) -> Self:
        if self.data.kind == "mteb" and self.per_query_file:
            raise ValueError("mteb gives no figures of single items: --mteb takes no --per-query")
        return self
