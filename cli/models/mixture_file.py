"""A mixture as the user writes it: a YAML file, or a YAML mapping for each `--source`. No dataset is read here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from services.trainer.mixture_config import Mixture
from shared.errors import InvalidInputError, SettingError, first_problem

DOCUMENTED = "docs/mixture.md says what there may be"


def read_mixture(file: Path | None, flags: Sequence[str]) -> Mixture | None:
    """The mixture of the file with the flags' sources behind its own; None without either.

    Paths are made absolute: a file's stand beside it, a flag's in the working directory.

    Raises InvalidInputError for a file that breaks a rule, with its line, and SettingError for a flag.
    """
    if file is None and not flags:
        return None
    value: dict[str, Any] = {"sources": []} if file is None else _load_file(file)
    of_flags = [_absolute(_load_flag(flag), Path()) for flag in flags]
    try:
        return Mixture.model_validate({**value, "sources": [*value["sources"], *of_flags]})
    except ValidationError as error:
        raise SettingError(f"--source {_of_the_flag(error, len(value['sources']))}{_said(error)}") from None


def _load_file(file: Path) -> dict[str, Any]:
    """What the file says, found to be a mixture."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(file, None, f"cannot be read: {error}") from None
    try:
        value, root = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise InvalidInputError(file, line, f"not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:  # a control character
        line = text.count("\n", 0, error.position) + 1
        raise InvalidInputError(file, line, f"not valid YAML: {error.reason}") from None
    if not isinstance(value, dict):
        raise InvalidInputError(file, None, f"not a mixture, which is `sources:` with a list of them; {DOCUMENTED}")
    try:
        Mixture.model_validate(value)
    except ValidationError as error:
        raise InvalidInputError(file, _line(root, error.errors()[0]["loc"]), _said(error)) from None
    return {**value, "sources": [_absolute(source, file.parent) for source in value["sources"]]}


def _load_flag(flag: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(flag)
    except yaml.YAMLError as error:
        raise SettingError(f"--source: not valid YAML: {error}") from None
    if not isinstance(value, dict):
        raise SettingError(
            f"--source takes a YAML mapping, as in '{{name: faq, kind: pair, path: faq.jsonl, task_description: "
            f"question answering}}', and got {flag!r}"
        )
    return value


def _absolute(source: dict[str, Any], base: Path) -> dict[str, Any]:
    path = source.get("path")
    return {**source, "path": str((base / path).absolute())} if isinstance(path, str) else source


def _said(error: ValidationError) -> str:
    """The names behind the source's own number and kind, and what is wrong with them."""
    place, said = first_problem(error)
    if place[:1] == ("sources",):
        place = place[3:]
    return f"{'.'.join(map(str, place)) or 'sources'}: {said}; {DOCUMENTED}"


def _of_the_flag(error: ValidationError, of_the_file: int) -> str:
    """Which of the flags it is about, from 1, if it is about one of them."""
    match first_problem(error)[0]:
        case ("sources", int(number), *_) if number >= of_the_file:
            return f"number {number - of_the_file + 1}, "
    return ""


def _line(node: Any, loc: Sequence[str | int]) -> int | None:
    """The line (from 1) of what an error is about, or of the innermost thing around it that stands in the file."""
    if node is None:
        return None
    for step in loc:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
        elif isinstance(node, yaml.MappingNode):  # pydantic also names the kind, which is no key
            node = next((value for key, value in node.value if key.value == step), node)
    line: int = node.start_mark.line + 1
    return line
