"""A device that is reached over OpenSSH: commands, files, and what went wrong in words that help.

Nothing is asked of the user: where a password or an unknown host key would need an answer, the connection fails and
the error says what to do once by hand. Host keys are checked as OpenSSH is set up to check them.
"""

from __future__ import annotations

import io
import shlex
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from duskfuse.data.errors import DuskfuseError, InputError

CONNECT_S = 10
_ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
_FAILED_CONNECTION = 255
_KEPT_LINES = 40
_REASONS = (
    ("host key verification failed", "its host key is unknown or has changed; connect once by hand (ssh {host})"),
    ("permission denied", "no password is asked for; install your key with ssh-copy-id {host}"),
    ("could not resolve", "check the name, or add it to ~/.ssh/config"),
    ("connection refused", "an ssh server must run there: sudo apt-get install openssh-server"),
    ("timed out", "check that the device is on and in the same network: ping it"),
    ("no route to host", "check that the device is on and in the same network: ping it"),
)


class DeviceError(DuskfuseError):
    """A device cannot be reached, or what runs there fails."""


@dataclass(frozen=True)
class Answer:
    """What a command on the device printed, and its exit code."""

    code: int
    out: str
    err: str


class SshDevice:
    """A device by its ssh target: ``user@host`` or an alias of ~/.ssh/config."""

    def __init__(self, host: str) -> None:
        """Raises InputError for what is no target, and where there is no ssh client."""
        if not host or host.startswith("-") or any(sign.isspace() for sign in host):
            raise InputError(
                f"--host {host!r}", rule="user@device or an alias of ~/.ssh/config", remedy="give its name"
            )
        if shutil.which("ssh") is None:
            raise InputError("there is no ssh on this machine", remedy="install the OpenSSH client")
        self.host = host

    def run(
        self, script: str, *, timeout_s: float, send: bytes | None = None, on_line: Callable[[str], None] | None = None
    ) -> Answer:
        """Run a shell script on the device; ``on_line`` is given every line of its stderr as it comes.

        Raises DeviceError where the device cannot be reached or does not end in time.
        """
        process = subprocess.Popen(
            self._command(script),
            stdin=subprocess.DEVNULL if send is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out: list[bytes] = []
        err: list[str] = []
        assert process.stdout is not None
        assert process.stderr is not None
        threads = [
            threading.Thread(target=_collect, args=(process.stdout, out), daemon=True),
            threading.Thread(target=_listen, args=(process.stderr, err, on_line), daemon=True),
        ]
        if send is not None:
            assert process.stdin is not None
            threads.append(threading.Thread(target=_feed, args=(process.stdin, send), daemon=True))
        for thread in threads:
            thread.start()
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"{self.host} has not finished within {timeout_s:.0f} s", remedy="look at the device, then run again"
            ) from None
        finally:
            process.kill()
            process.wait()
            for thread in threads:
                thread.join(5)
        answer = Answer(code, b"".join(out).decode("utf-8", "replace"), "\n".join(err))
        if code == _FAILED_CONNECTION:
            raise self._unreachable(answer.err)
        return answer

    def send_files(self, files: Mapping[str, bytes | Path], folder: str, *, timeout_s: float) -> None:
        """Write files (relative name → content) below a new ``folder``; raises DeviceError where that fails."""
        answer = self.run(
            f"umask 077; mkdir -p {quote(folder)} && tar -xf - -C {quote(folder)}",
            timeout_s=timeout_s,
            send=_packed(files),
        )
        if answer.code:
            raise self.failed("copying", answer)

    def failed(self, doing: str, answer: Answer) -> DeviceError:
        """The error for a command that ended with another code than 0."""
        text = answer.err.lower()
        if "no space left" in text or "disk quota exceeded" in text:
            return DeviceError(f"{self.host}: its disk is full while {doing}", remedy="make room there, then run again")
        last = (answer.err.strip().splitlines() or ["no reason given"])[-1]
        return DeviceError(f"{self.host}: {doing} failed with code {answer.code}: {last}")

    def _command(self, script: str) -> list[str]:
        options = ("-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}", *_ALIVE)
        return ["ssh", *options, "--", self.host, f"exec sh -c {shlex.quote(script)}"]

    def _unreachable(self, said: str) -> DeviceError:
        lines = [line for line in said.strip().splitlines() if line.strip()]
        remedy = next((text for sign, text in _REASONS if sign in said.lower()), "try by hand: ssh {host}")
        reason = lines[-1] if lines else "no reason given"
        return DeviceError(f"{self.host} cannot be reached: {reason}", remedy=remedy.format(host=self.host))


def quote(path: str) -> str:
    """A path for the device's shell, below its home folder where it begins with ``~/``."""
    return '"$HOME"/' + shlex.quote(path[2:]) if path.startswith("~/") else shlex.quote(path)


def _packed(files: Mapping[str, bytes | Path]) -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in sorted(files.items()):
            data = content if isinstance(content, bytes) else content.read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mode = 0o700 if name.endswith(".sh") or data.startswith(b"#!") else 0o600
            tar.addfile(member, io.BytesIO(data))
    return memory.getvalue()


def _collect(stream: IO[bytes], kept: list[bytes]) -> None:
    kept.append(stream.read())


def _listen(stream: IO[bytes], kept: list[str], on_line: Callable[[str], None] | None) -> None:
    for raw in stream:
        line = raw.decode("utf-8", "replace").rstrip()
        kept.append(line)
        del kept[:-_KEPT_LINES]
        if on_line is not None and line:
            on_line(line)


def _feed(stream: IO[bytes], data: bytes) -> None:
    with suppress(OSError), stream:  # the other side may have given up
        stream.write(data)
