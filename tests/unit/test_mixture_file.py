"""A mixture as the user writes it: where paths lead, and what is said of mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.models.mixture_file import read_mixture
from services.trainer.config import TrainingConfig
from shared.errors import InvalidInputError, SettingError

GOOD = """\
# ours
sources:
  - kind: fret
    weight: 2
  - name: faq
    kind: pair
    path: data/faq.csv
    task_description: question answering
    fields:
      query: question
      positive: answer
"""


def written(folder: Path, text: str) -> Path:
    (folder / "mixture.yaml").write_text(text)
    return folder / "mixture.yaml"


def test_a_files_paths_stand_beside_it_and_a_flags_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, GOOD)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    flag = "{name: sts, kind: scored-pair, path: sts.csv, task_description: similarity, min_score: 4}"
    mixture = read_mixture(file, [flag])
    assert mixture is not None
    assert [source.name for source in mixture.sources] == ["fret", "faq", "sts"]
    assert [getattr(source, "path", None) for source in mixture.sources] == [
        None,
        str(tmp_path / "data" / "faq.csv"),
        str(tmp_path / "elsewhere" / "sts.csv"),
    ]
    alone = read_mixture(None, [flag])
    assert alone is not None
    assert alone.sources == mixture.sources[2:]
    assert read_mixture(None, ()) is None


def test_it_is_kept_with_the_training(tmp_path: Path) -> None:
    config = TrainingConfig(mixture=read_mixture(written(tmp_path, GOOD), ()))
    assert TrainingConfig(**config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("old", "new", "line", "rule"),
    [
        ("weight: 2", "weight: 0", 4, "weight: Input should be greater than 0"),
        ("kind: pair", "kind: pears", 5, "pears"),
        ("    path: data/faq.csv\n", "", 5, "name either a `path` or a `hub` dataset"),
        ("path: data/faq.csv", "hub: owner/faq\n    columns: [a]", 5, "`delimiter` and `columns` are of .csv"),
        (
            "query: question",
            "question: question",
            10,
            "fields.question: there is nothing of that name; docs/mixture.md",
        ),
        ("    task_description: question answering\n", "", 5, "task_description: Field required"),
        ("name: faq", "name: fret", 2, "two sources have the name 'fret'"),
        ("    weight: 2", "    weight: 2: 3", 4, "not valid YAML"),
        ("    kind: pair\n", "", 5, "sources: 'kind' is missing; docs/mixture.md"),
        ("name: faq", "name: fa\x07q", 5, "not valid YAML"),
        ("sources:", "source:", 2, "sources: Field required"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, old: str, new: str, line: int, rule: str) -> None:
    assert old in GOOD
    file = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(InvalidInputError, match=rule) as caught:
        read_mixture(file, ())
    assert (caught.value.path, caught.value.line) == (file, line)


@pytest.mark.parametrize("text", ["", "[]", "just words"])
def test_a_file_that_is_no_mixture(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        InvalidInputError, match=r"mixture\.yaml: not a mixture, which is `sources:` with a list of them"
    ):
        read_mixture(written(tmp_path, text), ())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_mixture(tmp_path / "no.yaml", ())


@pytest.mark.parametrize(
    ("flag", "rule"),
    [
        ("data.csv", "takes a YAML mapping"),
        ("{kind: pair", "not valid YAML"),
        ("{kind: pair, name: a, path: b}", "task_description: Field required"),
    ],
)
def test_a_mistake_in_a_flag(flag: str, rule: str) -> None:
    with pytest.raises(SettingError, match=rule):
        read_mixture(None, [flag])


def test_a_mistake_in_a_flag_is_not_the_files(tmp_path: Path) -> None:
    flags = ["{kind: pair, name: a, path: b, task_description: c}", "{kind: pair, name: a2, path: b}"]
    with pytest.raises(SettingError, match="--source number 2, task_description: Field required"):
        read_mixture(written(tmp_path, GOOD), flags)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["train", "latest", "--matryoshka-dims", "128,128"], "--matryoshka-dims takes different numbers above 0"),
        (
            ["train", "latest", "--matryoshka-weights", "1,2"],
            "takes a number, not below 0, for each .* got 1.0,2.0 for none",
        ),
        (["train", "latest", "--learning-rate", "0"], "--learning-rate: Input should be greater than 0"),
        (["evaluate", "x", "--classification", "y", "--samples-per-label", "0"], "^--samples-per-label: Input should"),
        (["evaluate", "x", "--mteb", "y", "--per-query", "z"], "^mteb gives .*: --mteb takes no --per-query$"),
        (["evaluate", "x", "--mteb", "y", "--dims", "0"], "--dims takes numbers above 0"),
    ],
)
def test_a_mistake_in_an_option_is_told_by_its_name(tmp_path: Path, command: list[str], says: str) -> None:
    output = ["--output", str(tmp_path / "new")] if command[0] == "train" else []
    result = CliRunner().invoke(app, [*command, *output])
    assert isinstance(result.exception, SettingError)
    assert re.search(says, str(result.exception))


@pytest.mark.parametrize(
    ("kind", "flags", "same_tower", "refused"),
    [
        ("triplet", ["--no-hard-negatives"], None, True),
        ("fret", ["--no-hard-negatives"], None, True),
        ("classification", ["--no-hard-negatives", "--same-tower-negatives"], False, True),
        ("classification", ["--no-hard-negatives", "--same-tower-negatives"], None, False),
        ("nli", [], None, False),
        ("pair", [], None, True),
        ("pair", [], True, False),
        ("pair", ["--same-tower-negatives"], None, False),
        ("list", ["--no-hard-negatives"], None, False),
        ("list", ["--no-hard-negatives", "--loss", "contrastive"], None, True),
    ],
)
def test_a_source_that_is_left_no_negatives_is_refused(
    tmp_path: Path, kind: str, flags: list[str], same_tower: bool | None, refused: bool
) -> None:
    place = {} if kind == "fret" else {"name": "x", "path": "x.jsonl", "task_description": "t"}
    source = {"kind": kind, "in_batch_negatives": False, "same_tower_negatives": same_tower, **place}
    # what is not refused goes on to its output folder, which is there already
    command = ["train", "latest", "--output", str(tmp_path), "--source", json.dumps(source), *flags]
    result = CliRunner().invoke(app, command)
    says = "leaves the queries of the source" if refused else "the output directory exists already"
    assert isinstance(result.exception, SettingError if refused else InvalidInputError)
    assert says in str(result.exception)
