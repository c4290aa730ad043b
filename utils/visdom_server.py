"""A visdom server: find one, start one on this machine that all runs share, stop it, talk to one.

One that is started here goes on in the background, whatever becomes of the run that started it, until :func:`stop`. In
the folder of its data, ``~/.visdom``, lie its log and a file that it keeps locked while it runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import http.client
import importlib
import importlib.util
import io
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from ..core.home import expanded, home
from . import child_process, visdom_files
from .files import lock, unlinked

ERRORS = (OSError, ValueError, RuntimeError)
"""What goes wrong when a server fails."""
ANSWER_SECONDS = 5.0
"""A server that takes longer to answer, to the last byte, counts as lost."""
ANSWER_BYTES = 2**24
"""An answer that is longer is none of visdom's."""
USERNAME, PASSWORD = "VISDOM_USERNAME", "VISDOM_PASSWORD"
"""Environment variables, the ones that visdom's own server reads: options are saved with a run, for all to read."""
START_SECONDS = 25.0
STOP_SECONDS = 5.0
LOG_BYTES = 2**20
"""A log that is longer begins anew when a server is started."""
PORT = 8097
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
    """A visdom server that was found, or started here for all runs to share."""

    def __init__(
        self,
        hostname: str,
        port: int,
        data: str | None = None,
        user: str | None = None,
        password_file: str | None = None,
    ) -> None:
        """
        Args:
            hostname: of the machine; one is started only on ``localhost``.
            port: of the server.
            data: where a server that is started keeps its environments; None takes visdom's own, ``~/.visdom``.
            user: whose login to use if it asks for one; None takes that of the environment.
            password_file: holds the password; None takes that of the environment.
        """
        self.url = f"http://{f'[{hostname}]' if ':' in hostname else hostname}:{port}"
        self.hostname = hostname
        self.port = port
        self.cookie = ""
        self.data = data
        self.user = user
        self.password_file = password_file
        self.process: subprocess.Popen[bytes] | None = None
        """The server, if it was started by this one."""
        self.looking = False
        """Whether it is being found or started at this moment."""

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
        asks = f"the visdom server at {self.url} asks for a login"
        username, password = self.user or os.environ.get(USERNAME), os.environ.get(PASSWORD)
        if self.password_file is not None:
            try:
                password = expanded(self.password_file).read_text(encoding="utf-8").strip("\r\n")
            except (OSError, ValueError) as error:
                return f"{asks}, and visdom_password_file cannot be read ({error})"
        if not username or not password:
            return (
                f"{asks}; visdom_user and visdom_password_file, or the environment variables {USERNAME} and "
                f"{PASSWORD}, say whose"
            )
        digest = hashlib.sha256(password.encode()).hexdigest()
        answer = request(self.hostname, self.port, "/", {"username": username, "password": digest})
        if answer.status != 200 or not answer.cookie:
            return f"{asks} and refuses that of {username!r}"
        self.cookie = answer.cookie
        return ""

    def ensure(self, again: bool = False) -> str:
        """Find the server or start it; return what is in the way, or an empty text.

        Args:
            again: whether it was there before; one that was stopped, and did not die, is not started then.
        """
        self.looking = True
        try:
            problem = self.problem()
            if problem is not None:
                return problem
            if self.hostname not in LOCAL:
                return f"there is no visdom server at {self.url}"
            if again and not _lock(self.folder, self.port).exists():
                return f"the visdom server at {self.url} was stopped"
            return self._start()
        except OSError as error:
            return f"a visdom server could not be started at {self.url} ({error})"
        finally:
            self.looking = False

    @property
    def folder(self) -> Path:
        """See :func:`data_folder`; one that is there already needs none."""
        return data_folder(self.data)

    @property
    def log(self) -> Path:
        """Of a server that is started here."""
        return self.folder / f"{_name(self.port)}.log"

    def _start(self) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.unlink()
        with open(self.log, "ab", opener=unlinked) as log:
            before = log.tell()
            self.process = process = subprocess.Popen(
                child_process.command(serve, str(self.port), str(self.folder)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                # Neither Ctrl-C nor the end of a terminal is meant for it.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        # One that finds another starting ends without an error.
        while time.monotonic() < deadline and not process.poll():
            if self.problem() == "":
                return ""
            time.sleep(0.2)
        process.kill()
        process.wait()
        self.process = None
        said = self.log.read_bytes()[before:].decode(errors="replace").strip().splitlines()
        return f"a visdom server could not be started at {self.url}" + (f" ({said[-1]})" if said else "")

    def text(self, environment: str, window: str) -> str | None:
        """What a window with a text shows, as HTML; None where there is none that can be read."""
        asked = {"eid": environment, "win": window}
        if request(self.hostname, self.port, "/win_exists", asked, self.cookie).text != "true":
            return None
        shown = json.loads(request(self.hostname, self.port, "/win_data", asked, self.cookie).text)
        return str(shown.get("content")) if isinstance(shown, dict) else None

    def has(self, environment: str) -> bool:
        """Whether the server has an environment, whatever that shows."""
        known = request(self.hostname, self.port, "/env_state", {}, self.cookie)
        return known.status == 200 and environment in json.loads(known.text)

    def forget(self, environment: str) -> None:
        """Have the server drop what it shows of an environment, if it has it; what is shown next is the newest."""
        if self.has(environment):
            # It deletes files alone that are there.
            request(self.hostname, self.port, "/save", {"data": [environment]}, self.cookie)
            request(self.hostname, self.port, "/delete_env", {"eid": environment}, self.cookie)


def data_folder(data: str | None = None) -> Path:
    """Where a server keeps its data, log and lock; None takes visdom's own.

    Raises:
        OSError: that would be in a home folder, and there is none.
    """
    return home() / ".visdom" if data is None else Path(data).absolute()


def _lock(folder: Path, port: int | str) -> Path:
    """What a server locks while it runs, and removes when it is stopped."""
    return folder / f"{_name(port)}.lock"


def _name(port: int | str) -> str:
    """Of a server's files, which machines may share."""
    return f"papertape-{platform.node()}-{port}"


def stop(data: str | None = None, port: int | None = None) -> list[int]:
    """Stop the servers that were started on this machine with a folder of data; returns their ports.

    What a dead one has left behind stops nobody.

    Args:
        data: the folder; None takes visdom's own.
        port: of the only one to stop; None stops all.

    Raises:
        OSError: one is not the user's to stop, or does not end; the others are stopped all the same.
    """
    stopped, errors = [], []
    for path in sorted(data_folder(data).glob(f"{_name('*' if port is None else port)}.lock")):
        number = path.stem.removeprefix(_name(""))
        if not number.isdecimal():  # of another machine, whose name begins like this one's, or of nobody
            continue
        try:
            if _end(path):
                stopped.append(int(number))
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return sorted(stopped)


def _end(path: Path) -> bool:
    """End who holds a lock; whether there was one."""
    began, held = time.monotonic(), False
    while holder := _holder(path):
        held, taken = True, time.monotonic() - began
        if taken > 2 * STOP_SECONDS:
            raise TimeoutError(f"{path} is held by {holder}, which does not end")
        process = holder.split()[1]
        if process.isdecimal():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGTERM if taken < STOP_SECONDS else signal.SIGKILL)
        time.sleep(0.1)
    path.unlink(missing_ok=True)
    return held


def _holder(path: Path) -> str:
    if not path.exists():
        return ""
    with lock(path) as holder:
        return holder


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


ROOT_PAGE = """<!doctype html>
<html><head><meta charset="utf-8"><title>Papertape</title><link rel="icon" href="data:,"><style>
body {{ margin: 0; display: flex; flex-direction: column; height: 100vh; font: 14px sans-serif }}
details {{ padding: 4px 12px; max-height: 40vh; overflow: auto }}
iframe {{ flex: 1; border: 0 }}
li {{ margin: 2px 0 }}
</style></head><body>
<details><summary>{summary}</summary><ul>{items}</ul></details>{frame}
<script>
let shown;
async function look() {{
  try {{
    const page = await (await fetch("/")).text();
    if (shown && page !== shown) location.reload();
    shown = page;
  }} catch (error) {{ }}
}}
look();
setInterval(look, 3000);
</script></body></html>
"""
"""Leads to the newest run and lists the others; follows when one begins."""


def root_page(environments: list[str]) -> str:
    """The page at the root of a server, for its environments, the oldest first."""
    runs = [name for name in reversed(environments) if name != "main"]
    links = [f'<a href="/env/{quote(name, safe="")}" target="run">{html.escape(name)}</a>' for name in runs]
    return ROOT_PAGE.format(
        summary=f"{html.escape(runs[0])}, the newest of {len(runs)} runs" if runs else "no run yet",
        items="".join(f"<li>{link}</li>" for link in links),
        frame=f'<iframe name="run" src="/env/{quote(runs[0], safe="")}"></iframe>' if runs else "",
    )


def serve(port: str, data: str) -> None:
    """Run a visdom server that listens on this machine only, unless another is being started at the same port.

    Args:
        port: to listen at.
        data: where environments are kept.
    """
    path = _lock(Path(data), port)
    with lock(path) as holder:
        if holder:
            return
        application = import_visdom("visdom.server.app").Application
        ioloop = importlib.import_module("tornado.ioloop").IOLoop.current()
        web = importlib.import_module("tornado.web")
        app = application(port=int(port), env_path=data)

        def last_written(name: str) -> float:
            file = Path(data, f"{name}.json")
            return file.stat().st_mtime if file.is_file() else 0.0

        # Those that begin later come after these.
        known = sorted(app.state.items(), key=lambda environment: last_written(environment[0]))
        app.state.clear()
        app.state.update(known)
        app.settings["static_handler_class"] = _static_files()

        class Root(web.RequestHandler):  # type: ignore[misc, name-defined]
            def get(self) -> None:
                self.write(root_page(list(app.state)))

        app.add_handlers(".*", [("/", Root)])
        listener = app.listen(int(port), address="127.0.0.1", max_buffer_size=1024**3)
        # What it is writing is written to the end.
        signal.signal(signal.SIGTERM, lambda *_: ioloop.add_callback_from_signal(ioloop.stop))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if visdom_files.missing_files():
            threading.Thread(target=visdom_files.fetch_and_say, daemon=True).start()
        ioloop.start()
        listener.stop()  # before the lock ends: whoever waits for that may want to listen there
        path.unlink(missing_ok=True)
