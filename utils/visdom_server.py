"""A visdom server: find one, start one on this machine, talk to one.

``python -m papertape.utils.visdom_server`` serves what runs have left behind, until Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import importlib
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote

from ..core import install
from . import child_process, visdom_files

ERRORS = (OSError, ValueError, RuntimeError)
"""What goes wrong when a server fails."""
ANSWER_SECONDS = 5.0
"""A server that takes longer to answer, to the last byte, counts as lost."""
ANSWER_BYTES = 2**24
"""An answer that is longer is none of visdom's."""
USERNAME, PASSWORD = "VISDOM_USERNAME", "VISDOM_PASSWORD"
"""Environment variables, the ones that visdom's own server reads: options are saved with a run, for all to read."""
START_SECONDS = 25.0
COMMAND = "python -m papertape.utils.visdom_server"
LOCAL = ("localhost", "127.0.0.1")


def import_visdom(module: str = "visdom") -> Any:
    """Import visdom, or a module of it, without torch, which it imports only to accept tensors.

    For processes that do not use torch themselves.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(module)
    finally:
        if hidden:
            del sys.modules["torch"]


class Answer(NamedTuple):
    """To a request."""

    status: int
    text: str
    cookie: str
    """What the server wants to be shown with the next request; of a login."""


class UnreachableError(OSError):
    """There is no way to a server."""


class _Received:
    """What http.client takes for a socket: all that a server has sent."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self.content)


def request(hostname: str, port: int, path: str, message: Any = None, cookie: str = "") -> Answer:
    """Post a message to a server, or get a page if there is none, through no proxy and within ``ANSWER_SECONDS``.

    Raises:
        ConnectionRefusedError: nothing listens there.
        UnreachableError: there is no such machine, or no way to it.
        OSError: no answer comes in time, or none by HTTP.
    """
    deadline = time.monotonic() + ANSWER_SECONDS
    body = b"" if message is None else (message if isinstance(message, str) else json.dumps(message)).encode()
    lines = [
        f"{'GET' if message is None else 'POST'} {quote(path, safe='/%')} HTTP/1.0",
        f"Host: {hostname}:{port}",
        f"Content-Length: {len(body)}",
        *([f"Cookie: {cookie}"] if cookie else []),
    ]
    received = bytearray()
    try:
        connection = socket.create_connection((hostname, port), ANSWER_SECONDS)
    except ConnectionRefusedError:
        raise
    except OSError as error:
        raise UnreachableError(f"{hostname} cannot be reached ({error.strerror or error})") from error
    with connection:
        connection.sendall("".join(f"{line}\r\n" for line in [*lines, ""]).encode() + body)
        # A timeout of each part alone would let a server take a second for every byte.
        while (left := deadline - time.monotonic()) > 0 and len(received) < ANSWER_BYTES:
            connection.settimeout(left)
            part = connection.recv(2**16)
            if not part:
                break
            received += part
        else:
            raise TimeoutError(f"no whole answer within {ANSWER_SECONDS:g} seconds")
    answer = http.client.HTTPResponse(_Received(bytes(received)))  # type: ignore[arg-type]
    try:
        answer.begin()
        text = answer.read().decode(errors="replace")
    except http.client.HTTPException as error:
        raise ConnectionError("it does not answer by HTTP") from error
    return Answer(answer.status, text, (answer.getheader("Set-Cookie") or "").partition(";")[0])


class Server:
    """A visdom server that was found, or started here as a child process that ends with this one."""

    def __init__(self, hostname: str, port: int, data: str | None = None) -> None:
        """
        Args:
            hostname: of the machine; one is started only on ``localhost``.
            port: of the server.
            data: where a server that is started keeps its environments; None takes visdom's own, ``~/.visdom``.
        """
        self.url = f"http://{f'[{hostname}]' if ':' in hostname else hostname}:{port}"
        self.hostname = hostname
        self.port = port
        self.cookie = ""
        self.data = data
        self.process: subprocess.Popen[bytes] | None = None

    def environment_url(self, environment: str) -> str:
        """The page of an environment."""
        return f"{self.url}/env/{quote(environment)}"

    def client(self, environment: str) -> Any:
        """A visdom client that gives up in time and raises one of ``ERRORS`` if anything is wrong."""
        visdom = import_visdom()

        class Client(visdom.Visdom):  # type: ignore[misc, name-defined]
            def _handle_post(client, url: str, data: Any = None) -> str:  # noqa: N805 (self is the server)
                answer = request(self.hostname, self.port, url.removeprefix(self.url), data or {}, self.cookie)
                if answer.status >= 400:
                    raise ConnectionError(f"it answers with status {answer.status}")
                return answer.text

        with warnings.catch_warnings():
            # visdom's own use of logging is out of date.
            warnings.simplefilter("ignore", DeprecationWarning)
            return Client(
                server=self.url.rpartition(":")[0],
                port=self.port,
                env=environment,
                use_incoming_socket=False,
                raise_exceptions=True,
            )

    def problem(self) -> str | None:
        """Why a visdom server cannot be used here, or an empty text if it can; None if nothing listens at all."""
        question = {"eid": "main", "win": "title"}
        try:
            answer = request(self.hostname, self.port, "/win_exists", question, self.cookie)
            # With an empty answer of this kind it refuses whoever has not logged in.
            if (answer.status, answer.text) == (400, "") and "Visdom Login" in self._page():
                refused = self._log_in()
                if refused:
                    return refused
                answer = request(self.hostname, self.port, "/win_exists", question, self.cookie)
        except ConnectionRefusedError:
            return None
        except UnreachableError as error:
            return f"there is no visdom server at {self.url}: {error}"
        except (OSError, ValueError):
            pass
        else:
            if (answer.status, answer.text) in ((200, "true"), (200, "false")):
                return ""
        return f"what listens at {self.url} does not answer as a visdom server does"

    def _page(self) -> str:
        return request(self.hostname, self.port, "/", cookie=self.cookie).text

    def _log_in(self) -> str:
        """Why the server does not let this user in, or an empty text if it does."""
        username, password = os.environ.get(USERNAME), os.environ.get(PASSWORD)
        asks = f"the visdom server at {self.url} asks for a login"
        if not username or not password:
            return f"{asks}; the environment variables {USERNAME} and {PASSWORD} say whose"
        digest = hashlib.sha256(password.encode()).hexdigest()
        answer = request(self.hostname, self.port, "/", {"username": username, "password": digest})
        if answer.status != 200 or not answer.cookie:
            return f"{asks} and refuses that of {USERNAME}={username!r}"
        self.cookie = answer.cookie
        return ""

    def ensure(self) -> str:
        """Find the server or start it; return what is in the way, or an empty text."""
        problem = self.problem()
        if problem is not None:
            return problem
        if self.hostname not in LOCAL:
            return f"there is no visdom server at {self.url}"
        return self._start()

    def _start(self) -> str:
        self.stop()
        with tempfile.TemporaryFile() as errors:
            command = child_process.command(serve_owner, str(self.port), self.data or "")
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)
            deadline = time.monotonic() + START_SECONDS
            while time.monotonic() < deadline and self.process.poll() is None:
                if self.problem() == "":
                    return ""
                time.sleep(0.2)
            self.stop()
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
        return f"a visdom server could not be started at {self.url}" + (f" ({said[-1]})" if said else "")

    def stop(self) -> None:
        """Stop the server if it was started here."""
        process, self.process = self.process, None
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _static_files() -> Any:
    """Tornado's handler of static files, but for a page that asks for ``../user/style.css``.

    visdom 0.2.4 does, and since 6.6 tornado answers such a page with 403; the address is visdom's own and served by it.
    """
    handler = importlib.import_module("tornado.web").StaticFileHandler

    class StaticFiles(handler):  # type: ignore[misc, valid-type]
        @classmethod
        def make_static_url(cls, settings: dict[str, Any], path: str, include_version: bool = True) -> str:
            if path.startswith("../"):
                return f"{settings['static_url_prefix']}{path}"
            url: str = super().make_static_url(settings, path, include_version)
            return url

    return StaticFiles


def serve(port: int, data: str | None = None, owner: IO[bytes] | None = None) -> None:
    """Run a visdom server that listens on this machine only; it does not try to download the page's files.

    Args:
        port: to listen at.
        data: where environments are kept; None takes visdom's own, ``~/.visdom``.
        owner: a pipe; the server ends when its other end is closed, so it cannot outlive the process that started it.
    """
    application = import_visdom("visdom.server.app").Application
    ioloop = importlib.import_module("tornado.ioloop").IOLoop.current()
    kept = import_visdom("visdom.server.defaults").DEFAULT_ENV_PATH if data is None else data
    Path(kept).mkdir(parents=True, exist_ok=True)
    app = application(port=port, env_path=str(kept))
    app.settings["static_handler_class"] = _static_files()
    app.listen(port, address="127.0.0.1", max_buffer_size=1024**3)
    if owner is not None:

        def wait_for_owner() -> None:
            owner.read()
            ioloop.add_callback(ioloop.stop)

        threading.Thread(target=wait_for_owner, daemon=True).start()
    ioloop.start()


def serve_owner(port: str, data: str) -> None:
    """:func:`serve` for the process at the other end of the standard input."""
    serve(int(port), data or None, sys.stdin.buffer)


def main() -> None:
    """Serve the environments that runs have left behind."""
    parser = argparse.ArgumentParser(description="Show the curves and heatmaps of earlier runs in a browser.")
    parser.add_argument("--port", type=int, default=8097)
    parser.add_argument("--data", help="folder of the environments (default: ~/.visdom)")
    options = parser.parse_args()
    if importlib.util.find_spec("visdom") is None:
        raise SystemExit(f"visdom is not installed; `{install.VISDOM}` gets it")
    with contextlib.suppress(KeyboardInterrupt):
        print(f"http://localhost:{options.port}, until Ctrl-C", flush=True)
        if visdom_files.missing_files():
            print(f"the page stays empty until `{visdom_files.COMMAND}` has fetched its files", flush=True)
        try:
            serve(options.port, options.data)
        except OSError as error:
            raise SystemExit(
                f"a visdom server could not be started at port {options.port} ({error.strerror})"
            ) from error


if __name__ == "__main__":
    main()
