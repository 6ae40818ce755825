"""What commands of runs take as settings: `--set key=value`, with the help that lists them, and a run's limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from shared.errors import SettingError, first_problem
from shared.models import as_given
from shared.records import LabelPolicy, RunConfig

Settings = TypeVar("Settings", bound=BaseModel)

MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", metavar="N", help="pause the run once its LLM calls have used this many tokens in all"
    ),
]
MaxHours = Annotated[
    float | None, typer.Option("--max-hours", metavar="H", help="pause the run after this time from now")
]


def settings_help(group: type[BaseModel], title: str) -> str:
    """A command's epilog: a paragraph per setting, with its default."""
    paragraphs = "\n\n".join(_described(group, "")).replace("[", r"\[")
    return f"[bold]{title}[/bold] (--set key=value)\n\n{paragraphs}"


def _described(group: type[BaseModel], prefix: str) -> list[str]:
    lines: list[str] = []
    for name, field in group.model_fields.items():
        if isinstance(field.default, BaseModel):
            lines += _described(type(field.default), f"{prefix}{name}.")
        else:
            shown = field.default
            if isinstance(shown, dict):
                shown = json.dumps(shown, separators=(",", ":"))  # as --set takes it
            unsaid = field.default in (None, "", {}) or field.default_factory is not None  # the description says it
            default = "" if unsaid else f" (default {shown})"
            lines.append(f"{prefix}{name}{default}: {field.description}")
    return lines


def parse_config(assignments: Sequence[str]) -> RunConfig:
    """The settings of a run; `labels.positive=seed` reaches into a group, and so does `query_kinds.title=2`, which
    leaves the other kinds as they are by default. Raises SettingError.
    """
    values = _parse(assignments, {"query_kinds": RunConfig.model_fields["query_kinds"].default})
    if isinstance(values.get("embedder"), str):
        values["embedder"] = as_given(values["embedder"])
    return _made(RunConfig, values, "start")


def parse_policy(assignments: Sequence[str]) -> LabelPolicy:
    """The settings of a labelling, which are those of a run behind `labels.`. Raises SettingError."""
    return _made(LabelPolicy, _parse(assignments, {}), "refuse")


def _parse(assignments: Sequence[str], defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The assignments as nested values. `defaults`: of groups whose model would not fill in the rest by itself."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise SettingError(f"--set takes key=value, and {assignment!r} has no '='")
        try:
            parsed: Any = json.loads(value)
        except ValueError:
            parsed = value  # a bare word is a string
        *groups, last = key.split(".")
        target = values
        for group in groups:
            target = target.setdefault(group, dict(defaults.get(group, {})))
            if not isinstance(target, dict):
                raise SettingError(f"--set {key}: {group} was given a value of its own before")
        target[last] = parsed
    return values


def _made(kind: type[Settings], values: dict[str, Any], command: str) -> Settings:
    try:
        return kind(**values)
    except ValidationError as error:
        place, said = first_problem(error)
        where = ".".join(str(part) for part in place if part != "[key]")  # pydantic's, for a key that may not be
        raise SettingError(f"--set {where}: {said}. `fretwork run {command} --help` lists the settings") from None
