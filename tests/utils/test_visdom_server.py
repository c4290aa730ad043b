"""A visdom server of our own, and the files that its page needs."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from papertape.core import install
from papertape.core.options import OptionsError
from papertape.utils import factory, options, visdom_files, visdom_server
from papertape.utils.sinks import Plotter
from papertape.utils.visdom_files import NPM, FilesError
from papertape.utils.visdom_server import Server

needs_visdom = pytest.mark.skipif(importlib.util.find_spec("visdom") is None, reason="visdom is not installed")

FAKE_NPM = """#!/bin/sh
"exec" "{python}" "$0" "$@"  # for the shell; to Python a string. A path with spaces cannot stand in the first line.
import pathlib, shutil, sys
if "--fail" in {mode!r}:
    sys.exit("npm error: no network")
folder = pathlib.Path(sys.argv[sys.argv.index("--pack-destination") + 1])
for package in sys.argv[sys.argv.index("--pack-destination") + 2 :]:
    name, _, version = package.rpartition("@")
    shutil.copy(pathlib.Path({packages!r}) / f"{{name}}-{{version}}.tgz", folder)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A visdom without the page's files."""
    directory = tmp_path / "visdom"
    (directory / "static" / "js").mkdir(parents=True)
    (directory / "VERSION").write_text("0.2.4\n")
    monkeypatch.setattr(visdom_files, "package_directory", lambda: directory)
    return directory


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """What npm would fetch: packages whose files hold their own names."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for package, files in NPM.items():
        name, _, version = package.rpartition("@")
        with tarfile.open(packages / f"{name}-{version}.tgz", "w:gz") as archive:
            for source in files:
                content = f"{package} {source}".encode()
                entry = tarfile.TarInfo(f"package/{source}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return packages


@pytest.fixture
def npm(tmp_path: Path, registry: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put an npm in place that fetches from the registry, or fails."""

    def place(mode: str = "") -> None:
        script = tmp_path / "bin" / "npm"
        script.parent.mkdir(exist_ok=True)
        script.write_text(FAKE_NPM.format(python=sys.executable, packages=str(registry), mode=mode))
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(script.parent))

    return place


def test_files_from_npm_go_where_the_page_looks_for_them(package: Path, npm: Any) -> None:
    npm()
    static = package / "static"
    assert set(visdom_files.missing_files()) == {target for files in NPM.values() for target in files.values()}
    visdom_files.install_page_files()
    assert not visdom_files.missing_files()
    assert (static / "js/d3.v3.min.js").read_text() == "d3@3.5.17 d3.min.js"
    assert (static / "css/react-grid-layout-styles.css").read_text() == "react-grid-layout@0.16.3 css/styles.css"
    assert (static / "version.built").read_text() == "0.2.4"
    assert not list(static.rglob(".*"))


def test_only_what_is_missing_is_fetched(package: Path, npm: Any, registry: Path) -> None:
    npm()
    visdom_files.install_page_files()
    (package / "static/js/sjcl.js").write_text("")
    for archive in registry.iterdir():
        if not archive.name.startswith("sjcl"):
            archive.unlink()
    visdom_files.install_page_files()
    assert (package / "static/js/sjcl.js").read_text() == "sjcl@1.0.7 sjcl.js"


def test_what_is_in_the_way_is_said(
    package: Path, npm: Any, registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FilesError, match="npm is not installed"):
        visdom_files.install_page_files()
    npm("--fail")
    with pytest.raises(FilesError, match="npm failed .*no network"):
        visdom_files.install_page_files()
    npm()
    (registry / "sjcl-1.0.7.tgz").write_bytes(b"not an archive")
    with pytest.raises(FilesError, match="static"):
        visdom_files.install_page_files()
    assert not (package / "static/version.built").exists()


def test_a_download_that_leaves_gaps_does_not_count(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        (package / "static/version.built").write_text("0.2.4")
        return subprocess.CompletedProcess(command, 1, "", "ConnectionError: no internet\n")

    monkeypatch.setattr(subprocess, "run", half)
    with pytest.raises(FilesError, match=r"\d+ files could not be downloaded, js/jquery.min.js.*no internet"):
        visdom_files.download_page_files()
    assert not (package / "static/version.built").exists()


def test_a_download_takes_no_file_of_the_working_directory_for_a_module_of_python(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "random.py").write_text("raise SystemExit('not of Python')")
    (package / "server").mkdir()
    for folder in (package, package / "server"):
        (folder / "__init__.py").touch()
    (package / "server" / "build.py").write_text("import random\n\n\ndef download_scripts(): raise SystemExit('begun')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FilesError, match="begun"):
        visdom_files.download_page_files()


def test_all_sources_are_tried_in_turn(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fail(name: str) -> Any:
        def method() -> None:
            tried.append(name)
            raise FilesError(f"{name} is down")

        return method

    monkeypatch.setattr(visdom_files, "download_page_files", fail("web"))
    monkeypatch.setattr(visdom_files, "install_page_files", fail("registry"))
    with pytest.raises(FilesError, match="npm: registry is down; web: web is down"):
        visdom_files.fetch()
    assert tried == ["registry", "web"]


def test_no_visdom_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FilesError, match=re.escape(install.here(install.VISDOM))):
        visdom_files.missing_files()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server("localhost", free_port(), str(tmp_path / "data"))
    assert not server.ensure()
    yield server
    stop(server)


def stop(server: Server) -> None:
    assert visdom_server.stop(str(server.folder)) in ([], [server.port])
    if server.process is not None:
        server.process.wait(10)


@needs_visdom
@pytest.mark.parametrize("path", ["/env/main", "/env/a_run"])
def test_the_page_is_served_whatever_the_version_of_tornado(server: Server, path: str) -> None:
    with urllib.request.urlopen(server.url + path, timeout=10) as answer:
        page = answer.read().decode()
    assert "user/style.css" in page
    assert "main.js" in page


@needs_visdom
def test_a_server_that_is_there_is_used(server: Server) -> None:
    second = Server("localhost", server.port)
    assert not second.ensure()
    assert second.process is None
    assert server.problem() == ""


@needs_visdom
def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    server = Server("localhost", free_port(), str(tmp_path / "file" / "data"))
    assert "could not be started" in (problem := server.ensure())
    assert os.strerror(20) in problem
    assert server.process is None


@needs_visdom
def test_without_a_home_folder_a_server_that_is_there_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "home", homeless)
        assert Server("localhost", server.port).ensure() == ""
        assert "could not be started" in (problem := Server("localhost", free_port()).ensure())
        assert "(there is no home folder; set HOME)" in problem


def test_an_environment_has_an_address() -> None:
    assert Server("localhost", 8097).environment_url("a run_1") == "http://localhost:8097/env/a%20run_1"


LOGIN_SERVER = """
import sys, tornado.ioloop
from papertape.utils.visdom_server import import_visdom
port, data = int(sys.argv[1]), sys.argv[2]
utils = import_visdom("visdom.utils.server_utils")
credential = {"username": "me", "password": utils.hash_password(utils.hash_password("secret"))}
application = import_visdom("visdom.server.app").Application(port=port, env_path=data, user_credential=credential)
application.listen(port, address="127.0.0.1")
print("listens", flush=True)
tornado.ioloop.IOLoop.current().start()
"""


@pytest.fixture(scope="module")
def login_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a server that only lets in ``me`` with the password ``secret``."""
    home = tmp_path_factory.mktemp("home")
    (home / ".visdom").mkdir()
    (home / ".visdom" / "COOKIE_SECRET").write_text("x" * 32)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", LOGIN_SERVER, str(port), str(home)],
        env={**os.environ, "HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None and process.stdout.readline()
    yield port
    process.kill()
    process.wait()
    process.stdout.close()


@needs_visdom
@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, r"asks for a login; visdom_user and visdom_password_file, or .* VISDOM_USERNAME and VISDOM_PASSWORD, say"),
        ({"VISDOM_USERNAME": "me"}, r"asks for a login; visdom_user and"),
        ({"VISDOM_USERNAME": "me", "VISDOM_PASSWORD": "guess"}, r"asks for a login and refuses that of 'me'"),
        ({"VISDOM_USERNAME": "me", "VISDOM_PASSWORD": "secret"}, r"^$"),
    ],
)
def test_a_server_that_asks_for_a_login(
    login_port: int, given: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("VISDOM_USERNAME", "VISDOM_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    server = Server("localhost", login_port)
    found = server.ensure()
    assert re.search(problem, found), found
    assert "secret" not in found and "guess" not in found
    if found:
        with pytest.raises(OptionsError, match="plots: got 'visdom', but the visdom server at .* asks for a login"):
            Plotter(tmp_path, "a_run", "visdom", port=login_port)
        return
    client = server.client("a_run")
    assert client.win_exists("title") is False
    client.text("words", win="title")
    assert client.win_exists("title") is True
    with Plotter(tmp_path, "another_run", "visdom", port=login_port) as plotter:
        plotter.text("options", "seed: 1")
    assert server.client("another_run").win_exists("text options") is True


@needs_visdom
def test_a_login_is_not_told_to_a_server_that_asks_for_none(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISDOM_USERNAME", "me")
    monkeypatch.setenv("VISDOM_PASSWORD", "secret")
    asked = Server("localhost", server.port)
    monkeypatch.setattr(asked, "_log_in", lambda: pytest.fail("told"))
    assert not asked.ensure()


def test_a_machine_that_cannot_be_reached_is_named() -> None:
    problem = Server("no-such-machine.invalid", 8097).ensure()
    assert "there is no visdom server at http://no-such-machine.invalid:8097: no-such-machine.invalid cannot" in problem


def test_addresses_of_the_sixth_version_stand_in_brackets() -> None:
    assert Server("::1", 8097).url == "http://[::1]:8097"


def test_what_is_no_host_is_refused() -> None:
    values = options.load_file("ntm-copy")
    for host in ("http://elsewhere", "two words", "", "elsewhere:8097"):
        with pytest.raises(OptionsError, match=f"visdom_host: got '{host}'; allowed: the name or the address"):
            factory.parse({**values, "visdom_host": host})
    for host in ("plots.example.org", "10.0.0.7", "::1"):
        assert factory.parse({**values, "visdom_host": host}).visdom_host == host


@needs_visdom
def test_a_login_by_options(login_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The name is an option, the password a file; what is given so comes before the environment."""
    monkeypatch.setenv("VISDOM_USERNAME", "somebody")
    monkeypatch.setenv("VISDOM_PASSWORD", "guess")
    file = tmp_path / "password"
    file.write_text("secret\n")
    assert Server("localhost", login_port, None, "me", str(file)).ensure() == ""
    file.write_text("wrong")
    assert "refuses that of 'me'" in Server("localhost", login_port, None, "me", str(file)).ensure()
    for none in ("/none", "~no-such-user/password"):
        assert "visdom_password_file cannot be read" in Server("localhost", login_port, None, "me", none).ensure()


def test_a_password_is_no_option() -> None:
    values = options.load_file("ntm-copy")
    chosen = factory.parse({**values, "visdom_user": "me", "visdom_password_file": "~/.secret"})
    assert (chosen.visdom_user, chosen.visdom_password_file) == ("me", "~/.secret")
    with pytest.raises(OptionsError, match="visdom_password: unknown option"):
        factory.parse({**values, "visdom_password": "secret"})


@needs_visdom
def test_one_command_stops_it_and_it_can_start_again(server: Server) -> None:
    assert visdom_server.stop(str(server.folder)) == [server.port]
    assert server.problem() is None
    assert visdom_server.stop(str(server.folder)) == []
    assert server.process is not None and server.process.wait(10) == 0
    assert "was stopped" in server.ensure(again=True)
    again = Server("localhost", server.port, str(server.folder))
    assert again.ensure() == ""
    stop(again)


@needs_visdom
def test_of_two_the_one_at_a_port_is_stopped(server: Server) -> None:
    other = Server("localhost", free_port(), str(server.folder))
    assert not other.ensure()
    assert visdom_server.stop(str(server.folder), other.port) == [other.port]
    assert other.problem() is None and server.problem() == ""
    assert other.process is not None
    other.process.wait(10)


@needs_visdom
def test_one_that_does_not_end_by_itself_is_killed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visdom_server, "STOP_SECONDS", 0.5)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    assert visdom_server.stop(str(server.folder)) == [server.port]
    assert server.process.wait(10) == -signal.SIGKILL


@needs_visdom
def test_two_that_start_at_once_are_one(tmp_path: Path) -> None:
    port = free_port()
    servers = [Server("localhost", port, str(tmp_path)) for _ in range(3)]
    threads = [threading.Thread(target=server.ensure) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [server.problem() for server in servers] == ["", "", ""]
    assert visdom_server.stop(str(tmp_path)) == [port]
    ended = sorted(server.process.wait(10) for server in servers if server.process is not None)
    assert ended == [0] * len(ended)


@pytest.mark.parametrize("content", ["process {pid} on here", "", "nonsense", "process 1 on here"])
def test_what_a_dead_server_has_left_stops_nobody(content: str, tmp_path: Path) -> None:
    """Another program may have its number by now."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    lock = tmp_path / f"{visdom_server._name(8097)}.lock"
    lock.write_text(content.format(pid=other.pid))
    assert visdom_server.stop(str(tmp_path)) == []
    assert other.poll() is None
    other.kill()
    other.wait()


def test_what_cannot_be_stopped_keeps_no_other_from_it(tmp_path: Path) -> None:
    for port in ("4000", "6000", "here"):
        (tmp_path / f"{visdom_server._name(port)}.lock").mkdir()
    path = tmp_path / f"{visdom_server._name(5000)}.lock"
    code = (
        "import sys, time; from pathlib import Path; from papertape.utils.files import lock\n"
        "with lock(Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        with pytest.raises(IsADirectoryError, match="4000"):
            visdom_server.stop(str(tmp_path))
        assert holder.wait(10) == -signal.SIGTERM
    assert not path.exists()


def test_names_that_are_not_of_a_port_here_are_left_alone(tmp_path: Path) -> None:
    """Such as those of a machine whose name begins like this one's, in a folder that both share."""
    other = tmp_path / f"{visdom_server._name('two-8097')}.lock"
    other.touch()
    assert visdom_server.stop(str(tmp_path)) == []
    assert other.exists()


@needs_visdom
def test_what_a_dead_server_has_left_is_in_nobodys_way(tmp_path: Path) -> None:
    server = Server("localhost", free_port(), str(tmp_path))
    (tmp_path / f"{visdom_server._name(server.port)}.lock").write_text("process 1 on here")
    assert server.ensure() == ""
    stop(server)


def page(server: Server) -> str:
    with urllib.request.urlopen(server.url, timeout=10) as answer:
        content: str = answer.read().decode()
        return content


@needs_visdom
def test_the_root_leads_to_the_newest_run_and_lists_the_others(server: Server) -> None:
    assert "no run yet" in page(server)
    for name in ("first_run", "a <b> & c", "last_run"):
        server.client(name).text("words", win="title")
    server.client("first_run").save(["first_run"])

    def listed() -> list[str]:
        return re.findall(r'<a href="/env/([^"]+)" target="run">', page(server))

    assert listed() == ["last_run", "a%20%3Cb%3E%20%26%20c", "first_run"]
    assert '<iframe name="run" src="/env/last_run">' in page(server)
    assert "a &lt;b&gt; &amp; c</a>" in page(server)
    # A run that goes on is the newest again.
    server.forget("first_run")
    assert "first_run" not in page(server)
    server.forget("no_such_run")
    server.client("first_run").text("words", win="title")
    assert listed()[0] == "first_run"
    # Runs that were saved are there when it starts again, in the order in which they were.
    for name in ("last_run", "first_run"):
        server.client(name).save([name])
        time.sleep(0.02)
    stop(server)
    assert server.ensure() == ""
    assert listed() == ["first_run", "last_run"]


@needs_visdom
def test_what_a_window_shows_is_told(server: Server) -> None:
    server.client("a_run").text("<p>kept in /a &amp; b</p>", win="title")
    assert server.text("a_run", "title") == "<p>kept in /a &amp; b</p>"
    assert server.text("a_run", "other") is None and server.text("b_run", "title") is None


@needs_visdom
def test_an_environment_that_was_cut_off_is_begun_anew(server: Server) -> None:
    """A server that is killed while it writes leaves half a file."""
    server.client("a_run").text("words", win="title")
    server.client("a_run").save(["a_run"])
    stop(server)
    file = server.folder / "a_run.json"
    file.write_text(file.read_text()[:20])
    assert server.ensure() == ""
    with pytest.raises(ConnectionError, match="500"):
        server.client("a_run").text("words", win="title")
    assert server.text("a_run", "title") is None
    server.forget("a_run")
    server.client("a_run").text("words", win="title")
    assert server.client("a_run").win_exists("title") is True


@needs_visdom
def test_it_fetches_what_its_page_lacks(tmp_path: Path) -> None:
    """In its own time, with a line in its log."""
    package = tmp_path / "visdom"
    spec = importlib.util.find_spec("visdom")
    assert spec is not None and spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, package, ignore=shutil.ignore_patterns("sjcl.js", "version.built"))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from papertape.utils.visdom_server import *\n"
        "server = Server('localhost', int(sys.argv[2]), sys.argv[1] + '/data')\n"
        "print(server.ensure(), server.log)"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", code, str(tmp_path), str(free_port())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    log = Path(done.stdout.strip())
    deadline = time.monotonic() + 30
    while "scripts" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "scripts could not be fetched: npm: npm is not installed; web: " in log.read_text()
    assert len(visdom_server.stop(str(tmp_path / "data"))) == 1
