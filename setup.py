"""Packaging: the repository root is the import package ``papertape``. What is no code is said in pyproject.toml."""

from __future__ import annotations

import copy
import platform
import re
import runpy
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.modified import newer_group

ROOT = Path(__file__).parent
ROOMS = ("agents", "circuits", "core", "envs", "utils")
ROOT_MODULES = ("__init__", "main")


class BuildPackage(build_py):
    """Leaves out the scripts that lie beside the package's own modules in the root."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Name every module of a package, as (package, module, file)."""
        modules = super().find_package_modules(package, package_dir)
        return [found for found in modules if package != "papertape" or found[1] in ROOT_MODULES]


class BuildNative(build_ext):
    """Builds the native backend where it can; without a C++ compiler the install goes on and says so."""

    def finalize_options(self) -> None:
        """Build the variants side by side."""
        super().finalize_options()
        self.parallel = self.parallel or True

    def build_extension(self, ext: Extension) -> None:
        """Build one variant, or warn; one that an earlier call has left in the source is as good."""
        built = ROOT.joinpath(*Path(self.get_ext_filename(ext.name)).parts[1:])
        if not self.force and not newer_group(["setup.py", *ext.sources, *ext.depends], str(built)):
            target = Path(self.get_ext_fullpath(ext.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(built), str(target))
            return
        builder = copy.copy(self)
        builder.build_temp = str(Path(self.build_temp, ext.name))  # all variants have the same source
        try:
            super(BuildNative, builder).build_extension(ext)
        except Exception as error:  # no compiler, or one that lacks what the source needs: the others may still work
            self.warn(f"{ext.name} is not built ({error}); the other backends serve")

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """None: these are plain C libraries, not Python modules."""
        return []


def native_extensions() -> list[Extension]:
    """The native backend, once per instruction set; the processor decides when the library is loaded."""
    folder = Path("core", "kernels", "native")
    identity = runpy.run_path(str(ROOT / folder / "identity.py"))["build_identity"]()
    avx2 = ["-mavx2", "-mfma"]
    variants: dict[str, list[str]] = {"_baseline": []}
    if platform.machine().lower() in ("x86_64", "amd64"):
        avx512 = ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mprefer-vector-width=512"]
        variants |= {"_avx2": avx2, "_avx512": [*avx2, *avx512]}
    warnings = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion"]
    general = ["-std=c++17", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-pthread"]
    return [
        Extension(
            f"papertape.core.kernels.native.{name}",
            sources=[str(folder / "source" / "library.cpp")],
            depends=[str(path) for path in sorted((folder / "source").glob("*.h"))],
            define_macros=[("BUILD_IDENTITY", f'"{identity}"')],
            extra_compile_args=[*general, *warnings, *flags],
            extra_link_args=["-pthread"],
            optional=True,
        )
        for name, flags in variants.items()
    ]


def description() -> str:
    """The README as a package index shows it, where links into the repository lead nowhere.

    There is no address yet that they could be completed with: they become plain text, and pictures are left out with
    the words below them.
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n\n\*[^*]+\*\n\n", "", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)[^)]*\)", r"\1", text)


setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    packages=[
        "papertape",
        *(f"papertape.{room}" for room in find_packages(str(ROOT), include=[*ROOMS, *(f"{room}.*" for room in ROOMS)])),
    ],
    package_dir={"papertape": "."},
    package_data={"papertape": ["py.typed", "options/*.yaml", "options/leagues/*.yaml", "zoo/*.pt"]},
    ext_modules=native_extensions(),
    cmdclass={"build_py": BuildPackage, "build_ext": BuildNative},
)
