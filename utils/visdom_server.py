"""A visdom server: find one, start one on this machine, talk to one.

``python -m papertape.utils.visdom_server`` serves what runs have left behind, until Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from ..core import install
from . import light_process, visdom_files

ERRORS = (OSError, ValueError, RuntimeError)
"""What goes wrong when a server fails; requests' errors and the client's are OSErrors."""
ANSWER_SECONDS = 5.0
"""A server that takes longer to answer counts as lost."""
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


def client(hostname: str, port: int, environment: str) -> Any:
    """A visdom client that gives up in time and raises one of ``ERRORS`` if anything is wrong."""
    visdom = import_visdom()
    requests = importlib.import_module("requests")
    session = requests.Session()
    # A proxy for the internet is of no use on the way to a server in the house.
    session.trust_env = False

    class Client(visdom.Visdom):  # type: ignore[misc, name-defined]
        def _handle_post(self, url: str, data: Any = None) -> str:
            answer = session.post(url, data=data or {}, timeout=ANSWER_SECONDS)
            answer.raise_for_status()
            text: str = answer.text
            return text

    with warnings.catch_warnings():
        # visdom's own use of logging is out of date.
        warnings.simplefilter("ignore", DeprecationWarning)
        return Client(
            server=f"http://{hostname}", port=port, env=environment, use_incoming_socket=False, raise_exceptions=True
        )


class Server:
    """A visdom server that was found, or started here as a child process that ends with this one."""

    def __init__(self, hostname: str, port: int, data: str | None = None) -> None:
        """
        Args:
            hostname: one is started only on ``localhost``.
            port: of the server.
            data: where a server that is started keeps its environments; None takes visdom's own, ``~/.visdom``.
        """
        self.url = f"http://{hostname}:{port}"
        self.local = hostname in LOCAL
        self.port = port
        self.data = data
        self.process: subprocess.Popen[bytes] | None = None

    def environment_url(self, environment: str) -> str:
        """The page of an environment."""
        return f"{self.url}/env/{quote(environment)}"

    def answers(self) -> bool | None:
        """Whether a visdom server answers; None if nothing listens there at all."""
        question = json.dumps({"eid": "main", "win": "title"}).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.url}/win_exists", question, ANSWER_SECONDS) as answer:
                return answer.read(16) in (b"true", b"false")
        except urllib.error.URLError as error:
            return None if isinstance(error.reason, ConnectionRefusedError) else False
        except (OSError, ValueError):
            return False

    def ensure(self) -> str:
        """Find the server or start it; return what is in the way, or an empty text."""
        answers = self.answers()
        if answers:
            return ""
        if answers is False:
            return f"what listens at {self.url} does not answer as a visdom server does"
        if not self.local:
            return f"there is no visdom server at {self.url}"
        return self._start()

    def _start(self) -> str:
        self.stop()
        with tempfile.TemporaryFile() as errors:
            command = light_process.command(serve_owner, str(self.port), self.data or "")
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)
            deadline = time.monotonic() + START_SECONDS
            while time.monotonic() < deadline and self.process.poll() is None:
                if self.answers():
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
    with contextlib.suppress(KeyboardInterrupt):
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
    print(f"http://localhost:{options.port}, until Ctrl-C")
    if visdom_files.missing_files():
        print(f"the page stays empty until `{visdom_files.COMMAND}` has fetched its files")
    serve(options.port, options.data)


if __name__ == "__main__":
    main()
