"""Classification: how well a logistic regression on a few embeddings per label tells the label of others, as in MTEB.

Ten experiments, each with its own draw of training texts. At a smaller dimension the classifier gets the first
coordinates as they are, as with sentence-transformers' `truncate_dim`: not normalised again.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from services.trainer.compare import Measured, mean_differences
from services.trainer.embed import OnProgress, embed
from services.trainer.lines import Where, text_of
from services.trainer.rows import TABLE_SUFFIXES, read_table
from shared.errors import InvalidInputError

# MTEB's, of AbsTaskClassification
EXPERIMENTS = 10
MAX_ITERATIONS = 100
SEED = 42

LABEL_COLUMNS = ("label", "category")  # banking77 has the latter

WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]*")

Label = str | int


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    texts: tuple[str, ...]
    labels: tuple[Label, ...]
    line_numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Classification:
    """Texts to learn labels from, and texts to tell them of."""

    train: LabelledTexts
    test: LabelledTexts
    samples_per_label: int
    main_metric = "accuracy"

    @property
    def sizes(self) -> dict[str, int]:
        return {
            "labels": len(set(self.train.labels)),
            "train_texts": len(self.train.texts),
            "test_texts": len(self.test.texts),
        }

    @property
    def item_names(self) -> list[dict[str, Any]]:
        return [
            {"line": line, "label": label} for line, label in zip(self.test.line_numbers, self.test.labels, strict=True)
        ]

    @property
    def text_count(self) -> int:
        return len(set().union(*self._samples())) + len(self.test.texts)

    def measure(self, model: SentenceTransformer, dims: Sequence[int], on_progress: OnProgress) -> dict[int, Measured]:
        """Accuracy and macro-averaged F1, means over the experiments, and in how many each text was told right.

        Texts stand behind the prompt that the model names Classification, as in mteb: without one if it has none.
        """
        samples = self._samples()
        used = sorted(set().union(*samples))  # the other training texts need no embedding
        vectors = embed(
            model,
            model.encode,
            model.prompts.get("Classification"),
            [*(self.train.texts[row] for row in used), *self.test.texts],
            on_progress,
        )
        place = {row: index for index, row in enumerate(used)}
        train, test = np.split(vectors.numpy(), [len(used)])
        return {
            dim: self._measured([train[[place[row] for row in rows], :dim] for rows in samples], samples, test[:, :dim])
            for dim in dims
        }

    def differences(self, before: Measured, after: Measured, seed: int) -> dict[str, dict[str, Any]]:
        """Of the accuracy, test texts drawn with replacement. F1 is no mean over texts, and gets no interval."""
        return mean_differences(before, after, (self.main_metric,), seed)

    def _samples(self) -> list[list[int]]:
        """The training rows of each experiment: `samples_per_label` of each label, or as many as there are.

        Every experiment shuffles anew what the one before left, always with the same seed, as mteb does.
        """
        rows = list(range(len(self.train.labels)))
        samples = []
        for _ in range(EXPERIMENTS):
            np.random.RandomState(SEED).shuffle(rows)
            drawn: Counter[Label] = Counter()
            sample = []
            for row in rows:
                label = self.train.labels[row]
                if drawn[label] < self.samples_per_label:
                    drawn[label] += 1
                    sample.append(row)
            samples.append(sample)
        return samples

    def _measured(
        self, vectors: Sequence[NDArray[np.float32]], samples: Sequence[Sequence[int]], test: NDArray[np.float32]
    ) -> Measured:
        labels = np.array(self.test.labels)
        right, f1 = [], []
        for train, rows in zip(vectors, samples, strict=True):
            with warnings.catch_warnings():
                # the iterations are part of the measure, whether or not they are enough
                warnings.simplefilter("ignore", ConvergenceWarning)
                classifier = LogisticRegression(max_iter=MAX_ITERATIONS, random_state=SEED)
                classifier.fit(train, [self.train.labels[row] for row in rows])
            told = classifier.predict(test)
            right.append(told == labels)
            f1.append(f1_score(labels, told, average="macro"))
        shares = np.mean(right, axis=0)
        figures = {"accuracy": float(shares.mean()), "f1_macro": float(np.mean(f1))}
        return Measured(figures, [{"accuracy": float(share)} for share in shares])


def read_classification(folder: Path, samples_per_label: int) -> Classification:
    """The folder's train and test, each a .csv, .tsv or .jsonl with the columns text and label (or category).

    Raises InvalidInputError: a file is missing or there twice, a column is missing, the training texts have fewer than
    two labels, or a test text has one that no training text has.
    """
    train, test = (_labelled_rows(_table(folder, name)) for name in ("train", "test"))
    known = {label for _, _, label in train}
    if len(known) < 2:
        raise InvalidInputError(train[0][0][0], None, "the training texts need at least two different labels")
    for where, _, label in test:
        if label not in known:
            raise InvalidInputError(*where, f"no training text has the label {label!r}")
    # whole numbers are ordered as numbers, which is the order that mteb's classifier has them in
    as_numbers = all(WHOLE_NUMBER.fullmatch(label) for label in known)
    return Classification(_labelled(train, as_numbers), _labelled(test, as_numbers), samples_per_label)


LabelledRow = tuple[Where, str, str]


def _table(folder: Path, name: str) -> Path:
    found = [path for suffix in TABLE_SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    if len(found) != 1:
        files = ", ".join(f"{name}{suffix}" for suffix in TABLE_SUFFIXES)
        raise InvalidInputError(folder, None, f"the folder has to have exactly one of {files}; it has {len(found)}")
    return found[0]


def _labelled_rows(path: Path) -> list[LabelledRow]:
    rows = [(where, text_of(where, row, "text"), _label(where, row)) for where, row in read_table(path)]
    if not rows:
        raise InvalidInputError(path, None, "no text in it: nothing can be measured")
    return rows


def _labelled(rows: Sequence[LabelledRow], as_numbers: bool) -> LabelledTexts:
    return LabelledTexts(
        tuple(text for _, text, _ in rows),
        tuple(int(label) if as_numbers else label for _, _, label in rows),
        tuple(line for (_, line), _, _ in rows),
    )


def _label(where: Where, row: Mapping[str, object]) -> str:
    column = next((column for column in LABEL_COLUMNS if column in row), None)
    if column is None:
        raise InvalidInputError(
            *where, f"the column {' or '.join(LABEL_COLUMNS)} is missing; there are {', '.join(row)}"
        )
    label = row[column]
    if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
        raise InvalidInputError(*where, f"{column} has to be a text that is not empty, or a whole number")
    return str(label)
