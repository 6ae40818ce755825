"""Files become passages here, one at a time. No database.

Read are a BEIR folder (its `corpus.jsonl`; queries and qrels are none of an import's business), a `.jsonl` file of the
same form, a `.parquet` file or a folder of them or a dataset of the hub (`tables`), and a folder of `.txt` and `.md`
files (`text_folder`).

In a `.jsonl` file each line is an object with `_id` (a string; an integer is taken as its decimal digits), `text` (a
string) and, if it likes, `title` (a string or null); other keys are ignored, and so are blank lines, a byte order mark
and carriage returns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from cli.corpus.lines import BrokenRuleError, LocatedPassage, Rule, Skipped, decode, numbered_lines, passage_of
from cli.corpus.tables import HUB, read_hub, read_parquet
from cli.corpus.text_folder import read_text_folder, text_files
from shared.errors import InvalidInputError
from shared.records import Passage

ABOUT = ("README", "LICENSE", "LICENCE")  # texts about a dataset


def read_passages(path: Path | str) -> Iterator[LocatedPassage | Skipped]:
    """The passages of `path` in a fixed order, and in their places the lines that break a rule.

    That one `_id` has two texts is not seen here: it takes the whole corpus to know. Raises InvalidInputError for a
    path that is missing, unreadable or of no known kind.
    """
    if str(path).startswith(HUB):
        yield from read_hub(str(path))
        return
    path = Path(path)
    if path.is_dir():
        beir, tables = path / "corpus.jsonl", sorted(path.glob("*.parquet"))
        if beir.is_file():
            yield from _read_jsonl(beir)
        elif tables:
            _check_no_texts(path, tables[0])
            for table in tables:
                yield from read_parquet(table)
        elif deeper := _deeper_table(path):
            raise InvalidInputError(path, None, f"there is no .parquet file in it, but in {deeper.parent}: name that")
        else:
            _check_no_lines(path)
            yield from read_text_folder(path)
    elif not path.exists():
        raise InvalidInputError(path, None, "there is no such file or folder")
    elif path.suffix.lower() == ".jsonl":
        yield from _read_jsonl(path)
    elif path.suffix.lower() == ".parquet":
        yield from read_parquet(path)
    else:
        rule = "not a kind of corpus: name a BEIR folder, a .jsonl or .parquet file or a folder of .txt and .md files"
        raise InvalidInputError(path, None, rule)


def _check_no_texts(folder: Path, table: Path) -> None:
    """Raises InvalidInputError where a folder of tables has texts too, beside those about it: they would be lost."""
    texts = [file for file in text_files(folder) if file.parent == folder and file.stem.upper() not in ABOUT]
    if texts:
        rule = f"it has tables ({table.name}) and texts ({texts[0].name}): move them apart, or name the .parquet file"
        raise InvalidInputError(folder, None, rule)


def _check_no_lines(folder: Path) -> None:
    """Raises InvalidInputError for a folder of .jsonl files and a README, which alone would be the corpus."""
    lines = [file for file in sorted(folder.glob("*.jsonl")) if not file.name.startswith(".")]
    if lines and all(file.stem.upper() in ABOUT for file in text_files(folder)):
        rule = f"a folder's .jsonl file is read where it is a BEIR folder's corpus.jsonl: name {lines[0].name} itself"
        raise InvalidInputError(folder, None, rule)


def _deeper_table(folder: Path) -> Path | None:
    """A .parquet file further down in a folder with no text but its README, which is no corpus: a hub's dataset."""
    if any(file != folder / "README.md" for file in text_files(folder)):
        return None
    return next((table for table in folder.rglob("*.parquet") if "/." not in f"/{table.relative_to(folder)}"), None)


def _read_jsonl(path: Path) -> Iterator[LocatedPassage | Skipped]:
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            passage = _parse(decode(line))
        except BrokenRuleError as broken:
            yield Skipped(path, number, broken.rule, broken.detail)
        else:
            yield LocatedPassage(passage, path, number)


def _parse(line: str) -> Passage:
    try:
        value = json.loads(line, object_pairs_hook=_object, parse_constant=_no_json)
    except json.JSONDecodeError as error:
        raise BrokenRuleError(Rule.MALFORMED_JSON, f"{error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets without end
        raise BrokenRuleError(Rule.MALFORMED_JSON, str(error)) from None
    if not isinstance(value, dict):
        raise BrokenRuleError(Rule.NOT_AN_OBJECT)
    return passage_of(value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise BrokenRuleError(Rule.REPEATED_KEY)
    return made


def _no_json(constant: str) -> NoReturn:
    raise BrokenRuleError(Rule.MALFORMED_JSON, f"{constant} is not JSON")
