"""Folders that are used are provably ours, whatever another user has put in the way."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradwire_server import entry, folders
from gradwire_server.entry import EmbeddedServer, Server
from gradwire_server.folders import FolderError, open_ours, require_kept
from gradwire_server.limits import Limits
from gradwire_server.segments import Segments, SharedMemoryError
from gradwire_server.store import StoreError, open_store
from gradwire_server.workers import AddressError

OTHER = 65534

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can act as another user, by setpriv",
)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder where everybody may make files, as /tmp is."""
    folder = Path(tempfile.mkdtemp(prefix="gradwire-test-"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def as_other(*command: str | Path) -> None:
    """Runs a command as another user."""
    who = ["setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups"]
    subprocess.run([*who, *map(str, command)], check=True)


def plant_file(path: Path) -> None:
    as_other("touch", path)


def plant_folder(path: Path) -> None:
    as_other("mkdir", "-m", "0777", path)


def plant_link(path: Path) -> None:
    """To a folder of ours, whose sockets the other user would like us to remove."""
    target = path.with_name("ours")
    target.mkdir(mode=0o700)
    as_other("ln", "-s", target, path)


PLANTED = [plant_file, plant_folder, plant_link]


@pytest.mark.parametrize("plant", PLANTED)
def test_shared_memory_is_in_no_folder_that_another_user_has_planted(
    shared: Path, plant: object
) -> None:
    path = shared / "memory"
    plant(path)  # type: ignore[operator]
    with pytest.raises(SharedMemoryError, match="cannot share memory in"):
        Segments(str(path), 1 << 20)
    assert not path.is_dir() or not [*path.iterdir()]


@pytest.mark.parametrize("plant", PLANTED)
def test_store_is_in_no_folder_that_another_user_has_planted(shared: Path, plant: object) -> None:
    path = shared / "store"
    plant(path / "." if plant is plant_link else path)  # type: ignore[operator]
    path = path / "graphs" if plant is plant_link else path
    with pytest.raises(StoreError, match="cannot be opened"):
        open_store(str(path), Limits())


@pytest.mark.parametrize("plant", PLANTED)
def test_folder_below_what_another_user_has_planted_is_refused(shared: Path, plant: object) -> None:
    path = shared / "above"
    plant(path)  # type: ignore[operator]
    with pytest.raises((FolderError, NotADirectoryError)):
        open_ours(path / "memory", make=True)
    assert not (path / "memory").exists()


def test_parent_that_another_user_can_swap_is_refused(shared: Path) -> None:
    parent = shared / "parent"
    parent.mkdir()
    (parent / "ours").mkdir(mode=0o700)
    os.close(open_ours(parent / "ours"))
    parent.chmod(0o777)
    with pytest.raises(FolderError, match=r"parent on the way to it can be written by others"):
        open_ours(parent / "ours")
    parent.chmod(0o755)
    os.chown(parent, OTHER, OTHER)
    with pytest.raises(FolderError, match=r"parent on the way to it belongs to user 65534"):
        open_ours(parent / "ours")


def test_what_is_swapped_after_it_was_checked_is_not_used(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descriptor leads to the folder that was looked at, wherever its name leads by now."""
    ours, elsewhere = shared / "ours", shared / "elsewhere"
    ours.mkdir(mode=0o700)
    elsewhere.mkdir(mode=0o700)
    opened = folders.os.open

    def swap_first(path: str, flags: int, **named: int) -> int:
        if path == "ours":
            ours.rename(shared / "before")
            ours.symlink_to(elsewhere)
        return opened(path, flags, **named)

    monkeypatch.setattr(folders.os, "open", swap_first)
    with pytest.raises(OSError, match="ours"):
        open_ours(ours)


def test_own_links_and_roots_are_followed(shared: Path) -> None:
    (shared / "real").mkdir(mode=0o755)
    (shared / "link").symlink_to("real")
    folder = open_ours(shared / "link" / "memory", make=True)
    assert stat.S_IMODE(os.fstat(folder).st_mode) == 0o700
    os.close(folder)
    assert (shared / "real" / "memory").is_dir()


def test_links_in_a_circle_are_refused(shared: Path) -> None:
    (shared / "one").symlink_to("two")
    (shared / "two").symlink_to("one")
    with pytest.raises(FolderError, match="too many symbolic links"):
        open_ours(shared / "one" / "memory")


def test_store_of_a_group_is_kept_and_one_of_everybody_is_not(shared: Path) -> None:
    folder = shared / "store"
    folder.mkdir()
    folder.chmod(0o2775)
    require_kept(folder)
    with pytest.raises(FolderError, match="everybody can write to it"):
        require_kept(shared)


def test_socket_file_of_another_user_is_neither_used_nor_removed(shared: Path) -> None:
    path = shared / "socket"
    as_other("touch", path)
    with pytest.raises(AddressError, match="belongs to user 65534"):
        entry._remove_dead_socket(f"unix:{path}")
    assert path.exists()


def test_embedded_server_listens_in_no_folder_that_others_can_swap(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    EmbeddedServer().close()
    shared.chmod(0o777)
    with pytest.raises(AddressError, match="set TMPDIR"):
        EmbeddedServer()
    assert not [*shared.iterdir()]


def test_server_shares_memory_in_a_folder_of_its_own(shared: Path) -> None:
    server = Server(Limits(), shared_memory=str(shared / "memory"))
    address = server.start(f"unix:{shared}/socket")
    assert address.startswith("unix:")
    (socket,) = (shared / "memory").iterdir()
    assert socket.is_socket()
    server.stop(0)
    assert not [*(shared / "memory").iterdir()]
