"""The supervisor as a program of its own: python -m cli.stack --home DIR [--database-only]."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from cli.stack import LOCKED_EXIT_CODE
from cli.stack.children import WORKERS
from cli.stack.processes import die_with
from cli.stack.state import LockedError
from cli.stack.supervisor import run_stack, say
from shared.errors import FretworkError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cli.stack", description="Runs the processes of one home.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True, help="the process to end with")
    parser.add_argument("--database-only", action="store_true", help="PostgreSQL and nothing else")
    arguments = parser.parse_args()
    die_with(arguments.parent, signal.SIGTERM)
    try:
        run_stack(arguments.home, workers={} if arguments.database_only else WORKERS)
    except LockedError:
        sys.exit(LOCKED_EXIT_CODE)  # no error to `ensure_stack`, which joins whoever was faster
    except FretworkError as error:
        say(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
