"""A fresh Debian in a folder, in which commands run as they would in an image: with its files, its user and its
variables, in a process and mount namespace of their own. It stands for what a Docker engine would do.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.docker.dockerfile import Instruction, copy

TOOLS = ("debootstrap", "unshare", "chroot")
MISSING = [*(name for name in TOOLS if shutil.which(name) is None), *(["root"] if os.geteuid() != 0 else [])]
needs_root = pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} missing; make test-image as root")
PACKAGES = "python3,python3-venv,ca-certificates"
BASE = "/usr/local/python"  # where the Python of the base image is put
# How this machine reaches the network.
NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")
HANDED_ON = ("PIP_CERT", "PIP_DEFAULT_TIMEOUT", "SSL_CERT_FILE", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")
ENTER = "mount -t proc proc {root}/proc && mount -t tmpfs tmpfs {root}/dev/shm && exec {enter}"


@dataclass
class FreshRoot:
    """The folder, and what the instructions have set so far."""

    path: Path
    variables: dict[str, str] = field(default_factory=dict)
    work: str = "/"
    user: str = "root"

    def command(self, words: list[str]) -> list[str]:
        """Words for this machine that run ``words`` in the root, and end all of it when they are ended."""
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        inside = f"cd {shlex.quote(self.work)} && exec {shlex.join(words)}"
        enter = ["chroot", f"--userspec={self.user}:{self.user}", str(self.path)]
        enter += ["/usr/bin/env", "-i", *variables, f"HOME={self.home}", "/bin/sh", "-c", inside]
        text = ENTER.format(root=shlex.quote(str(self.path)), enter=shlex.join(enter))
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", text]

    @property
    def home(self) -> str:
        return "/root" if self.user == "root" else f"/home/{self.user}"

    def run(self, words: list[str], seconds: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(words), capture_output=True, text=True, timeout=seconds)

    def do(self, instruction: Instruction) -> str:
        """Carries out one instruction of a Dockerfile; what it printed. AssertionError when it fails."""
        match instruction.keyword:
            case "ENV" | "ARG":
                self.variables |= dict(word.split("=", 1) for word in shlex.split(instruction.text))
            case "USER":
                self.user = instruction.text
            case "WORKDIR":
                self.work = instruction.text
                (self.path / self.work.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(instruction)
            case "RUN":
                done = self.run(["/bin/sh", "-c", instruction.text], seconds=1500)
                assert done.returncode == 0, f"{instruction.text}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
                return done.stdout
        return ""

    def _copy(self, instruction: Instruction) -> None:
        """With ``--chown`` the files belong to the user."""
        _, destination = instruction.copied
        target = self.path / (destination if destination.startswith("/") else f"{self.work}/{destination}").lstrip("/")
        copy(instruction, target)
        if "--chown" in instruction.text:
            done = subprocess.run(["chroot", self.path, "chown", "-R", self.user, f"/{target.relative_to(self.path)}"])
            assert done.returncode == 0


def fresh_root(path: Path) -> FreshRoot:
    """Debian bookworm with its own Python, in a virtual environment as the base image has no other."""
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    for file in NETWORK:
        if Path(file).is_file():
            shutil.copy(file, path / file.lstrip("/"))
    root = FreshRoot(path, {name: os.environ[name] for name in HANDED_ON if name in os.environ})
    root.variables |= {
        "PATH": f"{BASE}/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
    }
    done = root.run(["/usr/bin/python3", "-m", "venv", BASE])
    assert done.returncode == 0, done.stdout + done.stderr
    return root
