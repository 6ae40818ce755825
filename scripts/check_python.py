"""Says in one line why this Python cannot make the project's .venv, if so.

The Makefile runs it with whatever `python3` a machine has, so it must parse under old Pythons too.
"""

import sys

OLDEST, NEWEST = (3, 11), (3, 14)  # the newest that all locked wheels serve


def check():
    found = ".".join(str(part) for part in sys.version_info[:3])
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        return (
            "error: " + sys.executable + " is Python " + found + ", and the locked wheels serve 3.11 to 3.14: "
            "install one of these and name it, as in `make PYTHON=python3.12 demo`"
        )
    try:
        import ensurepip, venv  # noqa: E401, F401, I001 - Debian has them in a package of their own
    except ImportError:
        package = "python" + ".".join(str(part) for part in sys.version_info[:2]) + "-venv"
        return (
            "error: Python " + found + " lacks the module venv or ensurepip: on Debian or Ubuntu run "
            "`apt install " + package + "`, elsewhere name another Python, as in `make PYTHON=python3.12 demo`"
        )
    return None


sys.exit(check())
