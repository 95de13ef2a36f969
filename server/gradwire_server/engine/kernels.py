"""Where compiled kernels come from: a cache on disk, filled by a process beside the server.

No request waits for a compiler. `loaded` gives what this process has; `load` brings in what the
disk has, which takes under a second; `compile_all` fills the disk, which takes a minute or two and
is run by `python -m gradwire_server.engine.kernels` and by `gradwire warmup`. The folder is named
by a digest of everything that a compiled kernel depends on, so nothing in it is ever stale.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import signal
import subprocess
import sys
import tempfile
from functools import cache
from hashlib import sha256
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Lock, Thread
from types import ModuleType

from gradwire_server.array_erf import NDTR
from gradwire_server.array_slopes import SIGMOID_TAIL, TANH_TAIL
from gradwire_server.engine.kernel_source import kernel_source

#: The modules, in the order of need. The engine runs when the first two are there.
MODULES = ("scheduling", "float64", "float32", "window_loops")
#: Those that are files of this package; the others are generated.
_FILES = ("scheduling", "window_loops")

_PREFIX = "gradwire_kernels_"
_HERE = Path(__file__).parent
_log = logging.getLogger("gradwire")
_COMMAND = [sys.executable, "-m", "gradwire_server.engine.kernels"]
#: Modules that are whole.
_loaded: dict[str, ModuleType] = {}
_lock = Lock()  # of loading


def loaded(name: str) -> ModuleType | None:
    """A module of kernels, if this process has it."""
    return _loaded.get(name)


def load(name: str) -> ModuleType | None:
    """A module of kernels, from the disk if need be; None if it is not compiled yet."""
    with _lock:
        found = loaded(name)
        if found is None and _is_compiled(name):
            found = _import(name)
        return found


def load_all() -> bool:
    """Whether all modules are here now."""
    found = [load(name) for name in MODULES]
    return None not in found


def compile_all() -> Path:
    """Compiles what is missing, a process for each module (OSError where it cannot be written)."""
    folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several servers may start at once
        missing = [name for name in MODULES if not _is_compiled(name)]
        beside = [subprocess.Popen([*_COMMAND, name]) for name in missing]
        statuses = [process.wait() for process in beside]
        if any(statuses):
            raise RuntimeError(f"kernels were not compiled: {', '.join(missing)}")
    return folder()


def _compile(name: str) -> None:
    """Importing a module compiles what its cache lacks."""
    file = folder() / f"{name}.py"
    if not file.exists():  # the cache goes by the time the file was written
        fresh = file.with_suffix(f".{os.getpid()}")
        fresh.write_text(_source(name))
        fresh.replace(file)
    _import(name)
    (folder() / f"{name}.ready").touch()


@cache
def warm_up() -> Thread:
    """Brings the kernels in, on a thread; where they are not on disk, from a process beside.

    Once a process, however often it is asked. The thread ends when there is no more to come.
    """
    thread = Thread(target=_warm_up, name="gradwire-warmup", daemon=True)
    thread.start()
    return thread


def _warm_up() -> None:
    try:
        if load_all():
            return
        with subprocess.Popen(_COMMAND, stdin=subprocess.DEVNULL, start_new_session=True) as beside:
            # with the processes that it has started; what they have finished, is kept
            end = atexit.register(os.killpg, beside.pid, signal.SIGTERM)
            status = beside.wait()
            atexit.unregister(end)
        if status == 0:
            load_all()
        else:
            _log.warning("kernels were not compiled: status %d; the array engine answers", status)
    except Exception:
        _log.exception("kernels cannot be had; the array engine answers")


@cache
def folder() -> Path:
    """Where this machine's kernels of this version are."""
    import llvmlite
    import llvmlite.binding
    import numba
    import numpy

    parts = [
        *map(_source, MODULES),
        (_HERE / "elementary.py").read_text(),
        repr((NDTR, SIGMOID_TAIL, TANH_TAIL)),
    ]
    parts += [sys.version, numba.__version__, llvmlite.__version__, numpy.__version__]
    parts.append(llvmlite.binding.get_host_cpu_name())
    parts.append(llvmlite.binding.get_host_cpu_features().flatten())
    return _root() / sha256("\0".join(parts).encode()).hexdigest()[:16]


def _root() -> Path:
    """GRADWIRE_CACHE, or the user's cache folder, or one of the system's where there is none."""
    if chosen := os.environ.get("GRADWIRE_CACHE"):
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.access(home if os.path.isdir(home) else os.path.dirname(home), os.W_OK):
        return Path(home) / "gradwire"
    return Path(tempfile.gettempdir()) / f"gradwire-{os.getuid()}"


@cache
def _source(name: str) -> str:
    return (_HERE / f"{name}.py").read_text() if name in _FILES else kernel_source(name)


def _is_compiled(name: str) -> bool:
    """Whether importing the module compiles nothing, and runs nobody else's code.

    Numba compiles again where it cannot write.
    """
    if not (folder() / f"{name}.ready").exists() or not os.access(folder(), os.W_OK):
        return False
    state = folder().stat()
    return state.st_uid == os.getuid() and not state.st_mode & 0o022


def _import(name: str) -> ModuleType:
    spec = spec_from_file_location(_PREFIX + name, folder() / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # numba looks it up while it loads
    spec.loader.exec_module(module)
    _loaded[name] = module
    return module


if __name__ == "__main__":
    if sys.argv[1:]:
        _compile(sys.argv[1])
    else:
        os.nice(10)
        compile_all()
