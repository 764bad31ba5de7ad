"""The native library of host attention; all else is in ``pyproject.toml``.

The library is optional: without a compiler the package installs all the same. An editable install
does not build it, since a copy beside the sources would not follow their changes: it is built on
first use.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "src"))

from headrace.runtime.native import build  # noqa: E402


class BuildNative(build_ext):
    """Builds the library, but not into the source tree."""

    def run(self) -> None:
        """Build, unless the package is used from where its sources are."""
        if not (self.inplace or self.editable_mode):
            super().run()


def relative(paths: list[Path]) -> list[str]:
    """Return paths as setuptools wants them."""
    return [str(path.relative_to(ROOT)) for path in paths]


build.FOLDER = ROOT / "src/headrace/runtime/native"
setup(
    cmdclass={"build_ext": BuildNative},
    ext_modules=[
        Extension(
            "headrace.runtime.native._headrace_native",
            sources=relative(build.source_files()),
            depends=relative(build.header_files()),
            language="c++",
            extra_compile_args=[*build.compile_flags(), "-g0"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ],
)
