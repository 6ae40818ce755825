from __future__ import annotations

from pathlib import Path

import pytest

from cli.demo.harvest import DocumentedObject, SourceRoot, environment_roots, harvest

MODULE = '''
"""Tools for boats.

Everything that floats."""
raise RuntimeError("this module was imported")

def sail(wind):
    r"""Set the sails
    for the given wind.

    Trims the main sail first: \\\\o/
      indented
    """

def _private():
    """Hidden.

    Body."""

def terse():
    """One paragraph only."""

class Boat:
    """A boat.

    It floats."""

    def sink(self):
        """Sink the boat.

        Slowly."""
        def inner():
            """Nested.

            Out of reach."""

    def __init__(self):
        """Build it.

        From wood."""

try:
    import keel
except ImportError:
    class Keel:
        """A keel.

        A stand-in."""
if wind:
    async def drift():
        """Drift on.

        With the tide."""
else:
    async def drift():
        """Drift the other way.

        Comes second."""
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (
        "boats/__init__.py",
        "boats/_hidden.py",
        "boats/_inner/open.py",
        "boats/tests/test_boats.py",
        "not-a-package/boats.py",
        "boats/_private/__init__.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(MODULE, encoding="utf-8")
    return tmp_path


def test_public_objects_with_a_body_are_found_and_nothing_is_imported(root: Path) -> None:
    found = harvest([SourceRoot("fleet", root)])

    assert [o.qualified_name for o in found.objects] == [
        "boats",
        "boats.sail",
        "boats.Boat",
        "boats.Boat.sink",
        "boats.Keel",
        "boats.drift",
    ]
    assert found.objects[1] == DocumentedObject(
        "boats.sail", "fleet", "Set the sails for the given wind.", "Trims the main sail first: \\\\o/\n  indented"
    )
    assert found.objects[-1].summary == "Drift on."
    assert (found.files, found.unreadable) == (1, 0)


def test_a_packages_own_folder_gives_the_same_names(root: Path) -> None:
    assert (
        harvest([SourceRoot("boats", root / "boats", "boats")]).objects == harvest([SourceRoot("boats", root)]).objects
    )


def test_sources_that_are_no_python_are_counted_and_the_rest_is_read(root: Path) -> None:
    (root / "broken.py").write_text("def (:", encoding="utf-8")
    (root / "binary.py").write_bytes(b"\xff\xfe\x00")
    # an invalid escape is a SyntaxWarning, which would fail this test if it came through
    (root / "escape.py").write_text('"""Summary \\d here.\n\nBody."""', encoding="utf-8")

    found = harvest([SourceRoot("fleet", root)])

    assert (found.files, found.unreadable) == (4, 2)
    assert found.objects[0].qualified_name == "escape"


def test_of_two_namesakes_the_first_stays(root: Path) -> None:
    first, second = SourceRoot("first", root), SourceRoot("second", root)

    assert harvest([first, second]).objects == harvest([first]).objects


def test_the_environment_holds_the_standard_library_and_this_projects_dependencies() -> None:
    standard, *installed = environment_roots()

    assert standard.library == "python"
    assert (standard.path / "json" / "decoder.py").is_file()
    assert {"celery", "pydantic", "sqlalchemy"} <= {root.library for root in installed}
    assert all((root.path / "__init__.py").is_file() for root in installed)
