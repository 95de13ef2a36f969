"""Compiles the kernels with clang, which ziglang brings from PyPI, when the package is built.

`python -m gradwire_server.engine.kernels.building` does it in a checkout, for this machine. The
same source gives the same bytes on any machine, for this and for any other; with --check it proves
that what is there is what would be built.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from gradwire_server.engine.kernels import CPU, file_of, import_extension, levels_of
from gradwire_server.engine.kernels.bodies import SOURCES, digest, opcodes_header
from gradwire_server.specs import COMPUTED

_OPTIONS = (
    "-O3", "-g0", "-std=c11", "-fPIC", "-fvisibility=hidden", "-fno-sanitize=all",
    "-fno-stack-protector", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
    # X-macros leave arguments and branches empty, and not every body can run on vector registers
    "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-pass-failed",
)  # fmt: skip
#: What the compiler may use, by level.
_LEVEL_OPTIONS = {
    "x86-64-v2": ("-mcpu=x86_64_v2",),
    "x86-64-v3": ("-mcpu=x86_64_v3",),
    "x86-64-v4": ("-mcpu=x86_64_v4", "-mprefer-vector-width=512"),
    "aarch64": (),
}


@dataclass(frozen=True)
class Target:
    """A kind of machine: zig's name for it, that of wheels, and the levels of its processors."""

    triple: str
    tag: str
    levels: tuple[str, ...]


_X86 = ("x86-64-v2", "x86-64-v3", "x86-64-v4")
_ARM = ("aarch64",)

#: By what `platform` says of a machine: system, processor, C library.
TARGETS = {
    ("Linux", "x86_64", "glibc"): Target("x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64", _X86),
    ("Linux", "aarch64", "glibc"): Target("aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64", _ARM),
    ("Darwin", "x86_64", ""): Target("x86_64-macos.11.0", "macosx_11_0_x86_64", _X86),
    ("Darwin", "arm64", ""): Target("aarch64-macos.11.0", "macosx_11_0_arm64", _ARM),
}


def native() -> Target | None:
    """This machine's; None where there are no kernels for it, and NumPy's engine answers."""
    return TARGETS.get((platform.system(), platform.machine(), platform.libc_ver()[0]))


def build(target: Target, folder: Path, *, all_levels: bool) -> list[Path]:
    """Compiles the kernels into a folder: for all levels, or for this machine's, which is quicker.

    Returns the files (CalledProcessError where clang fails).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        compiler = _Compiler(target, Path(scratch))
        cpu = compiler.link([compiler.compile("cpu.c", "cpu.o", ())], folder / CPU.name)
        levels = target.levels if all_levels else levels_of(import_extension(cpu).LEVEL)[:1]
        return [cpu, *compiler.build_levels(levels, folder)]


@dataclass(frozen=True)
class _Compiler:
    target: Target
    work: Path

    def build_levels(self, levels: Iterable[str], folder: Path) -> list[Path]:
        """An extension for each, compiled side by side."""
        for dtype in COMPUTED:
            (self.work / f"{dtype}.h").write_text(opcodes_header(dtype))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            started = {level: self._start(level, pool) for level in levels}
            return [
                self.link([part.result() for part in parts], folder / file_of(level).name)
                for level, parts in started.items()
            ]

    def _start(self, level: str, pool: ThreadPoolExecutor) -> list[Future[Path]]:
        name, options = file_of(level).name.partition(".")[0], _LEVEL_OPTIONS[level]
        parts = [
            pool.submit(
                self.compile,
                "floating.c",
                f"{name}_{dtype}.o",
                options,
                FLOAT_BITS=dtype.removeprefix("float"),
                OPCODES_FILE=f'"{dtype}.h"',
                DIGEST=digest(dtype),
            )
            for dtype in COMPUTED
        ]
        return [
            *parts,
            pool.submit(
                self.compile, "scheduling.c", f"{name}_scheduling.o", options, DIGEST=digest(None)
            ),
            pool.submit(
                self.compile, "kernels.c", f"{name}.o", options, EXTENSION=name, LEVEL=level
            ),
        ]

    def compile(self, source: str, to: str, options: tuple[str, ...], **defined: str) -> Path:
        """One object file."""
        macros = [f"-D{name}={value}" for name, value in defined.items()]
        self._run("-c", *_OPTIONS, *options, *macros, f"-I{self.work}", SOURCES / source, "-o", to)
        return self.work / to

    def link(self, objects: list[Path], to: Path) -> Path:
        """An extension, which finds Python's functions in the process that loads it."""
        is_apple = "macos" in self.target.triple
        loose = ["-undefined", "dynamic_lookup"] if is_apple else ["-lm"]
        fresh = to.with_suffix(f".{os.getpid()}")
        self._run("-shared", "-s", "-O3", "-g0", *loose, *objects, "-o", fresh)
        fresh.replace(to)  # a process that has loaded the old one keeps it
        return to

    def _run(self, *arguments: object) -> None:
        cache = str(self.work / "zig")
        environment = os.environ | {"ZIG_LOCAL_CACHE_DIR": cache, "ZIG_GLOBAL_CACHE_DIR": cache}
        command = [sys.executable, "-m", "ziglang", "cc", "-target", self.target.triple]
        subprocess.run([*command, *map(str, arguments)], cwd=self.work, env=environment, check=True)


def main() -> None:
    """Builds this machine's level, in place; --check proves that the same bytes are there."""
    target = native()
    if target is None:
        print("there are no kernels for this kind of machine; NumPy's engine answers")
    elif sys.argv[1:] == ["--check"]:
        with TemporaryDirectory() as folder:
            for path in build(target, Path(folder), all_levels=False):
                if path.read_bytes() != (CPU.parent / path.name).read_bytes():
                    raise SystemExit(f"{path.name} is stale: install the package again")
    else:
        for path in build(target, CPU.parent, all_levels=False):
            print(path)


if __name__ == "__main__":
    main()
