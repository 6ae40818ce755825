"""Reads the docstrings of the Python libraries that this environment holds; the demo's raw material.

Sources are parsed with `ast`; nothing is imported, so a harvest runs no foreign code. What is good enough for the
corpus is not decided here: `corpus.py` does that.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# What this project itself asks for, in pyproject.toml. What those libraries bring with them is left out: the corpus
# would vary with it, and a corpus about one trade is what a model is adapted to.
LIBRARIES = (
    "accelerate",
    "alembic",
    "celery",
    "datasets",
    "fastapi",
    "jinja2",
    "kombu",
    "numpy",
    "psutil",
    "psycopg",
    "pyarrow",
    "pydantic",
    "pydantic_settings",
    "qdrant_client",
    "redis",
    "rich",
    "sentence_transformers",
    "sqlalchemy",
    "starlette",
    "structlog",
    "torch",
    "transformers",
    "typer",
    "uvicorn",
)
SKIPPED_FOLDERS = frozenset({"dist-packages", "idlelib", "site-packages", "test", "testing", "tests", "vendor"})
# more than half of all source text here, and nearly every docstring of it stands in ten models' files
SKIPPED_MODULES = frozenset({"transformers.models"})

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class SourceRoot:
    """A library's folder; `package` is the name it is imported by, or empty for a folder of top-level modules."""

    library: str
    path: Path
    package: str = ""


@dataclass(frozen=True, slots=True)
class DocumentedObject:
    """A public module, class, function or method: the first paragraph of its docstring on one line, and the rest."""

    qualified_name: str
    library: str
    summary: str
    body: str


@dataclass(frozen=True, slots=True)
class Harvest:
    """What was read; `unreadable` counts the files that are no valid Python source."""

    objects: list[DocumentedObject]
    files: int
    unreadable: int


def environment_roots() -> list[SourceRoot]:
    """The standard library, called `python`, and those of LIBRARIES that are installed."""
    paths = sysconfig.get_paths()
    roots = [SourceRoot("python", Path(paths["stdlib"]))]
    for library in LIBRARIES:
        folders = (Path(paths[scheme], library) for scheme in ("purelib", "platlib"))
        roots += [SourceRoot(library, folder, library) for folder in folders if folder.is_dir()][:1]
    return roots


def harvest(roots: Sequence[SourceRoot]) -> Harvest:
    """Every documented public object below `roots`, each name once, in an order that is the same on every call.

    Public: no part of the qualified name starts with an underscore. Objects whose docstring is a single paragraph
    have no body and are left out.
    """
    objects: dict[str, DocumentedObject] = {}
    files = unreadable = 0
    for root in roots:
        for path, module_name in _modules(root):
            files += 1
            module = _parse(path)
            if module is None:
                unreadable += 1
                continue
            for qualified_name, docstring in _docstrings(module, module_name):
                parts = re.split(r"\n\s*\n", docstring, maxsplit=1)
                if len(parts) == 2 and qualified_name not in objects:
                    summary = " ".join(parts[0].split())
                    objects[qualified_name] = DocumentedObject(
                        qualified_name, root.library, summary, parts[1].strip("\n")
                    )
    return Harvest(list(objects.values()), files, unreadable)


def _modules(root: SourceRoot) -> Iterator[tuple[Path, str]]:
    for folder, folder_names, file_names in os.walk(root.path):
        package = (*filter(None, [root.package]), *Path(folder).relative_to(root.path).parts)
        folder_names[:] = sorted(
            name
            for name in folder_names
            if name.isidentifier()
            and not name.startswith("_")
            and name not in SKIPPED_FOLDERS
            and ".".join((*package, name)) not in SKIPPED_MODULES
        )
        for file_name in sorted(file_names):
            stem, _, suffix = file_name.rpartition(".")
            if suffix != "py":
                continue
            if stem == "__init__" and package:
                yield Path(folder, file_name), ".".join(package)
            elif stem.isidentifier() and not stem.startswith("_"):
                yield Path(folder, file_name), ".".join((*package, stem))


def _parse(path: Path) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foreign sources hold invalid escapes; that is none of the user's business
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
            return None


def _docstrings(node: ast.Module | Definition, qualified_name: str) -> Iterator[tuple[str, str]]:
    docstring = ast.get_docstring(node, clean=False)
    if docstring:
        yield qualified_name, inspect.cleandoc(docstring)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for child in _definitions(node.body):
            if not child.name.startswith("_"):
                yield from _docstrings(child, f"{qualified_name}.{child.name}")


def _definitions(statements: Sequence[ast.stmt]) -> Iterator[Definition]:
    """The definitions in a module's or class's body, those under its `if` and `try` statements among them."""
    for statement in statements:
        if isinstance(statement, Definition):
            yield statement
        elif isinstance(statement, ast.If):
            yield from _definitions([*statement.body, *statement.orelse])
        elif isinstance(statement, ast.Try):
            handlers = [inner for handler in statement.handlers for inner in handler.body]
            yield from _definitions([*statement.body, *handlers, *statement.orelse, *statement.finalbody])
