"""The command line, as a user has it, for benchmarks that measure the whole product."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def fretwork(home: Path, *arguments: str) -> str:
    """What the command prints as data; what it says beside goes through. Raises CalledProcessError where it fails."""
    sys.stderr.write(f"  fretwork {' '.join(arguments)}\n")
    command = [sys.executable, "-m", "cli.main", "--home", str(home), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
