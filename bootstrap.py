"""Set up Papertape in .venv, then run it. Needs Python 3.10 or newer with pip, a package index, and nothing else.

python3 bootstrap.py               set up only
python3 bootstrap.py train [...]   set up, then `python main.py train [...]`: the NTM on copy, with live plots
python3 bootstrap.py test [...]    set up, then lint, types and `pytest [...]`

A second call finds everything in place and starts at once. Nothing outside this folder is touched.
"""

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
STAMP = ENVIRONMENT / "bootstrap"
"""Holds the fingerprint of a finished environment, UNFINISHED before; absent from one that somebody else made."""
UNFINISHED = "unfinished"
OLDEST_PYTHON = (3, 10)
CHECKS = {
    "lint": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "types": ["mypy"],
}


class SetupError(Exception):
    """What stands in the way, and what to do about it."""


def run(*command: "str | Path", **changes: str) -> None:
    """Run a command in the root, with some environment variables changed.

    Raises:
        SetupError: the command failed.
    """
    words = [str(word) for word in command]
    print("+", shlex.join(words), flush=True)
    status = subprocess.call(words, cwd=ROOT, env={**os.environ, **changes})
    if status:
        raise SetupError(f"the command above failed (exit status {status}); its last lines say why. Then try again.")


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
        run(sys.executable, "-m", "venv", ENVIRONMENT)
    else:  # Debian's python3-pip without python3-venv: pip puts a copy of itself there.
        run(sys.executable, "-m", "venv", "--without-pip", ENVIRONMENT)
        run(sys.executable, "-m", "pip", "--python", PYTHON, "install", "pip")


def install() -> None:
    """Install Papertape, editable, with all that it can use and what its tests need."""
    # The constraints hold where packages are built, too: by PIP_CONSTRAINT before pip 25.3, then PIP_BUILD_CONSTRAINT.
    # Both split their value at spaces; an address has none. PIP_USE_PEP517 makes old pips build apart from .venv.
    constraints = (ROOT / "constraints.txt").as_uri()
    run(
        *(PYTHON, "-m", "pip", "install", "--editable", ".[dev,gym,visdom]"),
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


def set_up() -> None:
    """Bring the environment up to date: nothing to do, install again, or start over.

    Raises:
        SetupError: it cannot be made here.
    """
    wanted = fingerprint()
    found = STAMP.read_text() if STAMP.is_file() else None
    usable = works() and (found is None or found.startswith(f"{ROOT}\n"))
    if usable and found == wanted:
        return
    if ENVIRONMENT.exists() and not usable:
        if found is None:
            raise SetupError(f"{ENVIRONMENT} was not made by bootstrap.py and has no working pip: move it away.")
        print(f"{ENVIRONMENT} is unfinished, was moved or no longer works: starting over", flush=True)
        shutil.rmtree(ENVIRONMENT)
    if not ENVIRONMENT.exists():
        create()
    elif found is not None:
        STAMP.write_text(UNFINISHED)
    install()
    STAMP.write_text(wanted)


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
    try:
        if sys.version_info < OLDEST_PYTHON:
            raise SetupError(
                "Papertape needs Python {}.{} or newer, and {} is {}.{}: call this file with a newer one.".format(
                    *OLDEST_PYTHON, sys.executable, *sys.version_info
                )
            )
        set_up()
        if command == "test":
            return test(arguments)
        if command == "train":
            # In place of this process: Ctrl-C is then the training's alone, which saves before it stops.
            os.execv(PYTHON, [str(PYTHON), str(ROOT / "main.py"), "train", *arguments])
        print(f"ready: source {shlex.quote(str(ENVIRONMENT / 'bin' / 'activate'))}; python main.py --help")
    except SetupError as problem:
        print(f"bootstrap.py: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
