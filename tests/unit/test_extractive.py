"""The sentences that the offline teacher finds in a text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.generator.extractive import sentences
from shared.masking import verbatim_span

ABSTRACT = (
    "Cells divide in many ways. The protein p53 (see Fig. 2) arrests the cycle in e.g. fibroblasts. "
    "We show that its loss leads to unchecked growth!  Does this hold in mice? It was the case in all of them."
)
DOCSTRING = """
    This is the eager form of the function, and it returns
    a new tensor.  The input is left as it was.

    Parameters
    ----------
    x : Tensor
        The tensor whose values are to be clipped.
    lo, hi : float, optional

    >>> clip(x, 0, 1)
    tensor([0.1, 1.0])

    .. note:: This line belongs to a directive of the markup.

    * Values below the lower bound are
      raised to that bound.
    * other: see below

    ```
    This Line Is Code And It Ends.
"""


def test_sentences_of_an_abstract() -> None:
    assert sentences(ABSTRACT) == [
        "Cells divide in many ways.",
        "The protein p53 (see Fig. 2) arrests the cycle in e.g. fibroblasts.",
        "We show that its loss leads to unchecked growth!",
        "Does this hold in mice?",
        "It was the case in all of them.",
    ]


def test_sentences_of_a_docstring_are_its_prose() -> None:
    assert sentences(DOCSTRING)[:4] == [
        "This is the eager form of the function, and it returns a new tensor.",
        "The input is left as it was.",
        "The tensor whose values are to be clipped.",
        "Values below the lower bound are raised to that bound.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Too short.",
        "no capital, so a fragment of some sentence.",
        "There is no full stop at the end of it",
        "x = [1, 2, 3]; y = f(x)[0] + {2: 3}; z = 4.",
        "| A table | has many | cells of | words here. |",
        "Many " + "many " * 60 + "words.",
    ],
)
def test_what_is_no_sentence(text: str) -> None:
    assert sentences(text) == []


@given(st.text(alphabet=st.sampled_from("Aab .!\n-*>)`é1"), max_size=300))
def test_every_sentence_stands_in_its_text(text: str) -> None:
    for sentence in sentences(text):
        assert verbatim_span(sentence, text) is not None


def test_a_text_without_any_capital_has_sentences_too() -> None:
    abstract = (
        "an experimental study of a wing in a propeller slipstream was made in order to determine the spanwise "
        "distribution of the lift increase due to slipstream at different angles of attack of the wing . the results "
        "were intended in part as an evaluation basis for theoretical treatments of this problem . f(x) = 3 . short ."
    )
    assert [sentence.split()[0] for sentence in sentences(abstract)] == ["an", "the"]
    assert sentences(f"{abstract} Here a capital begins the sentence.") == ["Here a capital begins the sentence."]
