"""A Docker engine of the tests' own: private socket and data, gone when the tests are."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
PROGRAMS = ("dockerd", "docker", "iptables", "mmdebstrap")


def why_not() -> str:
    """Why there can be no engine here; empty where there can."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        return f"{', '.join(missing)}: not installed (tests/system/docker/install.sh)"
    if os.geteuid() != 0:
        return "a Docker engine needs root"
    for plugin in ("compose", "buildx"):
        if subprocess.run(["docker", plugin, "version"], capture_output=True).returncode:
            return f"docker {plugin}: not installed (tests/system/docker/install.sh)"
    return ""


@dataclass(frozen=True, slots=True)
class Engine:
    """Runs the docker command against one engine."""

    socket: Path

    def run(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        check: bool = True,
        timeout_s: float = 900,
    ) -> subprocess.CompletedProcess[str]:
        """``docker ARGUMENTS``; its output, both streams in one."""
        done = subprocess.run(
            ["docker", *arguments],
            env={**self.environment(), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        assert not check or done.returncode == 0, done.stdout[-6000:]
        return done

    def output(self, *arguments: str) -> str:
        return self.run(*arguments).stdout.strip()

    def environment(self) -> dict[str, str]:
        """None of the settings and secrets of whoever runs the tests."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("VAPO_", "RAY_"))}
        return {**kept, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_BUILDKIT": "1"}


@contextmanager
def running_engine(root: Path) -> Iterator[Engine]:
    """dockerd without systemd, its default bridge or a limit that a container here may not have."""
    root.mkdir(parents=True, exist_ok=True)
    engine = Engine(root / "docker.sock")
    with (root / "dockerd.log").open("w") as log:
        daemon = subprocess.Popen(
            [
                "dockerd",
                f"--host=unix://{engine.socket}",
                f"--data-root={root / 'data'}",
                f"--exec-root={root / 'exec'}",
                f"--pidfile={root / 'docker.pid'}",
                "--exec-opt=native.cgroupdriver=cgroupfs",
                "--bridge=none",
                "--default-ulimit=nofile=20000:20000",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while engine.run("info", check=False).returncode:
            assert daemon.poll() is None, (root / "dockerd.log").read_text()[-3000:]
            time.sleep(0.2)
        yield engine
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)


def import_base_image(engine: Engine, name: str, folder: Path) -> None:
    """Debian with Python, from the package archive alone, that trusts what this machine trusts."""
    archive = folder / "base.tar"
    packages = "ca-certificates,python3,python3-venv"
    trust = f"upload {CA_BUNDLE} {CA_BUNDLE}"
    _run("mmdebstrap", "--variant=minbase", f"--include={packages}", f"--customize-hook={trust}",
         "bookworm", str(archive))  # fmt: skip
    variables = " ".join(
        f"{name}={CA_BUNDLE}" for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    )
    engine.run("import", f"--change=ENV {variables}", str(archive), name)
    archive.unlink()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@dataclass(frozen=True, slots=True)
class Compose:
    """One project of the compose files, with settings that a user would export."""

    engine: Engine
    project: str
    files: Sequence[Path]
    settings: Mapping[str, str]

    def run(
        self, *arguments: str, check: bool = True, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        files = [part for file in self.files for part in ("--file", str(file))]
        return self.engine.run(
            *("compose", "--project-name", self.project, *files, *arguments),
            environment={**self.settings, **settings},
            check=check,
        )

    def up(self, **settings: str) -> subprocess.CompletedProcess[str]:
        """The whole job; exits as the trainer does."""
        return self.run(
            *("up", "--no-build", "--no-color", "--exit-code-from", "trainer"),
            check=False,
            **settings,
        )

    def start(self, **settings: str) -> None:
        self.run("up", "--no-build", "--detach", **settings)

    def container(self, service: str) -> str:
        """Id of a service's only container, running or not."""
        return self.run("ps", "--all", "--quiet", service).stdout.strip()

    def log(self, service: str) -> str:
        return self.run("logs", "--no-color", "--no-log-prefix", service).stdout

    def wait_for(self, text: str, service: str = "trainer", timeout_s: float = 400) -> None:
        """Until a service has logged ``text``."""
        deadline = time.monotonic() + timeout_s
        while text not in (log := self.log(service)):
            assert time.monotonic() < deadline, f"no {text!r} after {timeout_s} s:\n{log[-6000:]}"
            assert self.state(service, "Running") == "true", log[-6000:]
            time.sleep(1)

    def state(self, service: str, field: str) -> str:
        container = self.container(service)
        return self.engine.output("inspect", "--format", f"{{{{.State.{field}}}}}", container)

    def wait(self, service: str = "trainer") -> int:
        """Exit code of a service, once it has ended."""
        return int(self.engine.output("wait", self.container(service)))
