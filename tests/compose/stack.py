"""The stack in containers, as a test drives it: a Compose project of its own, with folders and a port of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "docker-compose.cpu.yml")


class Answer(NamedTuple):
    status: int
    body: str


def run(*command: str, check: bool = True, timeout_s: float = 300, env: dict[str, str] | None = None) -> str:
    """Its standard output; fails the test with its standard error where it does not end with 0."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=env, cwd=ROOT, check=False)
    if check and done.returncode:
        pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
    return done.stdout


def compose_program() -> tuple[str, ...]:
    """Compose v2 or v1, with an engine that answers; fails the test where there is none: who runs this asked for it."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.fail("no Docker engine answers here: `docker info` says why")
    for program in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(program[0]) and not subprocess.run([*program, "version"], capture_output=True).returncode:
            return program
    pytest.fail("neither docker compose nor docker-compose is installed here")


@dataclass(frozen=True, slots=True)
class ComposeStack:
    """`folder` holds what is mounted: corpora, models, exports."""

    program: tuple[str, ...]
    project: str
    folder: Path
    port: int

    def compose(self, *arguments: str, check: bool = True, timeout_s: float = 300) -> str:
        named = [part for file in FILES for part in ("--file", file)]
        env = {
            # what the indexes of packages are called; nothing else that somebody set for a stack of their own
            **{name: value for name, value in os.environ.items() if not name.startswith(("FRETWORK_", "COMPOSE_FILE"))},
            "CORPORA_FOLDER": str(self.folder / "corpora"),
            "MODELS_FOLDER": str(self.folder / "models"),
            "EXPORTS_FOLDER": str(self.folder / "exports"),
            "FRETWORK_STATUS_PORT": str(self.port),
        }
        start = (*self.program, "--project-name", self.project, "--env-file", str(self.folder / "empty.env"), *named)
        return run(*start, *arguments, check=check, timeout_s=timeout_s, env=env)

    def cli(self, *arguments: str, timeout_s: float = 600) -> str:
        """What `fretwork …` in a container of its own prints."""
        return self.compose("run", "--rm", "-T", "cli", *arguments, timeout_s=timeout_s)

    def up(self) -> None:
        try:
            self.compose("up", "--detach", "--no-build", timeout_s=600)
        except pytest.fail.Exception as error:
            pytest.fail(f"{error}\n{self.compose('logs', '--no-color', '--tail', '30', check=False)}")

    def scale(self, **replicas: int) -> None:
        wanted = [part for queue, count in replicas.items() for part in ("--scale", f"{queue}={count}")]
        self.compose("up", "--detach", "--no-build", "--no-recreate", *wanted)

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "--quiet", service).split()

    def crash(self, container: str) -> None:
        """Kills what runs in a container as the kernel would: `docker kill` would be taken for somebody's wish."""
        killing = "import os, signal; os.kill(-1, signal.SIGKILL)"
        run("docker", "exec", container, "python", "-c", killing, check=False)

    def get(self, path: str) -> Any:
        answer = self.ask(path)
        assert answer.status == 200, answer.body
        return json.loads(answer.body)

    def ask(self, path: str, *, method: str = "GET", token: str | None = None) -> Answer:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return Answer(answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read().decode())

    def is_up(self) -> bool:
        try:
            return self.ask("/readyz").status == 200
        except OSError:
            return False
