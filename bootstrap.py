"""Set up Papertape in .venv, then run it. Needs Python 3.10 or newer with pip, a package index, and nothing else.

python3 bootstrap.py               set up only
python3 bootstrap.py train [...]   set up, then `papertape train [...]`: the NTM on copy, with live plots
python3 bootstrap.py test [...]    set up, add what the tests need, then lint, types and `pytest [...]`

A second call finds everything in place and starts at once. Nothing is installed outside this folder; only
caches (mostly in ~/.cache) and the data of visdom's page (~/.visdom) are kept elsewhere.
"""

import contextlib
import hashlib
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
STAMP = ENVIRONMENT / "bootstrap"
"""Holds the fingerprint and the extras of a finished environment, UNFINISHED before; absent from one that somebody else
made."""
LOG = ENVIRONMENT / "bootstrap.log"
UNFINISHED = "unfinished"
OLDEST_PYTHON = (3, 10)
TO_TRAIN = {"gym", "visdom"}
TO_TEST = {"dev", *TO_TRAIN}
"""Extras of the package."""
SAY_SECONDS = 5
AT = {
    "Building editable": "compiling the kernels, which takes longest",
    "Installing collected packages": "unpacking all of them",
    **dict.fromkeys(
        ("Installing build dependencies", "Collecting", "Downloading", "Processing", "Successfully installed")
    ),
}
"""Lines of pip that say what it is at, and how to say it better."""
BEGAN = time.monotonic()
CHECKS = {
    "lint": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "types": ["mypy"],
}


class SetupError(Exception):
    """What stands in the way, and what to do about it."""


def say(text: str) -> None:
    """Print a line, with the seconds since the beginning."""
    print(f"{time.monotonic() - BEGAN:5.0f} s  {text}", flush=True)


def run(what: str, *command: "str | Path", **changes: str) -> None:
    """Run a command in the root, with some environment variables changed; say what it is at while it takes its time.

    Raises:
        SetupError: the command failed.
    """
    say(what)
    words = [str(word) for word in command]
    said: list[str] = []
    status = watch(words, {**os.environ, **changes}, said, f"still {what}")
    with LOG.open("a", encoding="utf-8") as log:
        log.writelines(f"{line}\n" for line in (f"+ {shlex.join(words)}", *said))
    if status and (reason := lacks_index(said)):
        raise SetupError(f"{what}: no package index could be reached ({reason}). All that pip said is in {LOG}.")
    if status:
        last = "".join(f"  | {line}\n" for line in said[-20:])
        raise SetupError(
            f"{what}: failed (exit status {status}). It said:\n{last}All of it is in {LOG}. Then try again."
        )


def lacks_index(said: "list[str]") -> str:
    """Why pip found no version of something if that is since it could not ask for one; otherwise an empty text."""
    if not any(sign in line for line in said for sign in ("No matching distribution found", "ResolutionImpossible")):
        return ""
    if os.environ.get("PIP_NO_INDEX", "0").lower() not in ("", "0", "f", "false", "n", "no", "off"):
        return "PIP_NO_INDEX is set"
    return "is there a network?" if any("connection broken by" in line for line in said) else ""


def watch(words: "list[str]", environment: "dict[str, str]", said: "list[str]", otherwise: str) -> int:
    """Run a command and return its exit status; lines that it says go to ``said``, and at times one is printed."""
    with subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
        text=True,
        start_new_session=True,  # to end it with all that it has started
    ) as process:
        try:
            lines = process.stdout or ()
            reader = threading.Thread(target=lambda: said.extend(line.rstrip() for line in lines), daemon=True)
            reader.start()
            while reader.is_alive():
                reader.join(SAY_SECONDS)
                if reader.is_alive():
                    at = next(
                        (AT[word] or line.strip() for line in reversed(said) for word in AT if word in line), None
                    )
                    at = at or otherwise
                    say(f"  {at if len(at) < 90 else at[:89] + '…'}")
            return process.wait()
        except BaseException:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGTERM)
            raise


def fingerprint() -> str:
    """Place of the environment, which cannot be moved, and a hash of all that it is made from."""
    names = ("bootstrap.py", "constraints.txt", "pyproject.toml", "setup.py")
    sources = (path for path in ROOT.glob("core/**/*") if path.suffix in (".cpp", ".h", ".hpp"))
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / name for name in names), *sources]):
        digest.update(path.read_bytes())
    return f"{ROOT}\n{digest.hexdigest()}\n"


def create() -> None:
    """Make an empty environment with pip in it.

    Raises:
        SetupError: this Python cannot.
    """
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None
    if importlib.util.find_spec("venv") is None or not (has_ensurepip or importlib.util.find_spec("pip")):
        raise SetupError(
            f"{sys.executable} lacks the module venv, or both pip and ensurepip. On Debian and Ubuntu: "
            "apt install python3-venv; elsewhere, install Python from python.org."
        )
    ENVIRONMENT.mkdir()
    STAMP.write_text(UNFINISHED)
    if has_ensurepip:
        run("making an environment", sys.executable, "-m", "venv", ENVIRONMENT)
    else:  # Debian's python3-pip without python3-venv: pip puts a copy of itself there.
        run("making an environment", sys.executable, "-m", "venv", "--without-pip", ENVIRONMENT)
        run("installing pip", sys.executable, "-m", "pip", "--python", PYTHON, "install", "pip")


def install(extras: "set[str]") -> None:
    """Install Papertape, editable, with some of its extras."""
    # The constraints hold where packages are built, too: by PIP_CONSTRAINT before pip 25.3, then PIP_BUILD_CONSTRAINT.
    # Both split their value at spaces; an address has none. PIP_USE_PEP517 makes old pips build apart from .venv.
    constraints = (ROOT / "constraints.txt").as_uri()
    run(
        "installing what training needs" if extras == TO_TRAIN else "installing what training and tests need",
        *(PYTHON, "-m", "pip", "install", "--no-input", "--progress-bar", "off"),
        *("--editable", f".[{','.join(sorted(extras))}]"),
        PIP_CONSTRAINT=" ".join(filter(None, [os.environ.get("PIP_CONSTRAINT"), constraints])),
        PIP_BUILD_CONSTRAINT=" ".join(filter(None, [os.environ.get("PIP_BUILD_CONSTRAINT"), constraints])),
        PIP_USE_PEP517="1",
    )


def works() -> bool:
    """Whether the environment has a Python that starts and has pip."""
    try:
        return subprocess.call([str(PYTHON), "-c", "import pip"], stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def fetch_scripts() -> None:
    """Fetch the scripts of the page that shows the plots, which can be done without for now."""
    try:
        run("fetching the scripts of the page that shows plots", PYTHON, ROOT / "main.py", "page", "fetch")
    except SetupError as problem:
        say(f"the page of plots stays empty until {program()} page fetch has worked: {problem}")


def set_up(extras: "set[str]") -> None:
    """Bring the environment up to date: nothing to do, install again, or start over.

    Args:
        extras: that are needed; others that are there stay.

    Raises:
        SetupError: it cannot be made here.
    """
    wanted = fingerprint()
    found = STAMP.read_text() if STAMP.is_file() else None
    usable = works() and (found is None or found.startswith(f"{ROOT}\n"))
    there = set(found.splitlines()[-1].split()) & TO_TEST if usable and found else set()
    if usable and found and found.startswith(wanted) and extras <= there:
        return
    is_link = ENVIRONMENT.is_symlink()  # to somewhere else, or to nothing
    if (is_link or ENVIRONMENT.exists()) and not usable:
        if found is None and ENVIRONMENT.exists():
            raise SetupError(f"{ENVIRONMENT} was not made by bootstrap.py and has no working pip: move it away.")
        say(f"{ENVIRONMENT} is unfinished, was moved or no longer works: starting over")
        if is_link:
            ENVIRONMENT.unlink()
        else:
            shutil.rmtree(ENVIRONMENT)
    say(f"setting up {os.path.relpath(ENVIRONMENT)}, once; that takes a minute or two, more over a slow network")
    if not ENVIRONMENT.exists():
        create()
    elif found is not None:
        STAMP.write_text(UNFINISHED)
    install(extras | there)
    if not there:
        fetch_scripts()
    STAMP.write_text(f"{wanted}{' '.join(sorted(extras | there))}\n")
    say("done")


def program() -> str:
    """The command line of Papertape, as it works in every shell."""
    path = os.path.relpath(ENVIRONMENT / "bin" / "papertape")
    return shlex.quote(str(ENVIRONMENT / "bin" / "papertape") if path.startswith("..") else path)


def test(arguments: "list[str]") -> int:
    """Run every check, the tests last; returns the exit status."""
    failed = []
    for name, command in CHECKS.items():
        print(f"== {name}", flush=True)
        if subprocess.call([str(PYTHON), "-m", *command], cwd=ROOT):
            failed.append(name)
    print("== tests", flush=True)
    status = subprocess.call([str(PYTHON), "-m", "pytest", *arguments], cwd=ROOT)
    if failed:
        print("FAILED before the tests: " + ", ".join(failed), flush=True)
    return status or int(bool(failed))


def main() -> int:
    """Run the command line; returns the exit status."""
    command, *arguments = sys.argv[1:] or ["setup"]
    if command not in ("setup", "train", "test"):
        print(__doc__.strip())
        return 0 if command in ("-h", "--help") else 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if sys.version_info < OLDEST_PYTHON:
            raise SetupError(
                "Papertape needs Python {}.{} or newer, and {} is {}.{}: call this file with a newer one.".format(
                    *OLDEST_PYTHON, sys.executable, *sys.version_info
                )
            )
        set_up(TO_TEST if command == "test" else TO_TRAIN)
        if command == "test":
            return test(arguments)
        if command == "train":
            # In place of this process: Ctrl-C is then the training's alone, which saves before it stops. It waits until
            # the program that starts is ready for it.
            say("training starts")
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            os.execv(PYTHON, [str(PYTHON), str(ROOT / "main.py"), "train", *arguments])
        print(f"ready: {program()} train ntm-copy")
    except (SetupError, OSError) as problem:
        print(f"bootstrap.py: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bootstrap.py: interrupted; the next call goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
