"""A folder is moved into its place whole, and never over another's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.durably import rename_durably


def folder(path: Path, text: str) -> Path:
    (path / "below").mkdir(parents=True)
    (path / "below" / "data").write_text(text)
    return path


def test_it_is_there_whole_also_where_an_empty_one_stood(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    rename_durably(folder(tmp_path / "source", "ours"), tmp_path / "target")
    assert (tmp_path / "target" / "below" / "data").read_text() == "ours"
    assert not (tmp_path / "source").exists()


def test_files_that_somebody_put_there_meanwhile_stay(tmp_path: Path) -> None:
    theirs = folder(tmp_path / "target", "theirs")
    with pytest.raises(OSError, match="not empty"):
        rename_durably(folder(tmp_path / "source", "ours"), theirs)
    assert (theirs / "below" / "data").read_text() == "theirs"
