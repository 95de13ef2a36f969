"""Folders that are provably ours: nobody else can change what is in them, or what their path means.

A path is walked folder by folder, through descriptors. Each folder on the way belongs to root or to
this user, and others may write to it only where they cannot replace what is not theirs (the sticky
bit of /tmp); a symbolic link is followed where root or this user made it. So what was looked at is
what is used, whatever others do meanwhile.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress

_LINKS = 40
#: A descriptor of a folder that need not be listed.
_PASS = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC if hasattr(os, "O_DIRECTORY") else 0
_PASS |= getattr(os, "O_PATH", 0)


class FolderError(Exception):
    """A folder, or one on the way to it, is or may be somebody else's; says which and why."""


def open_ours(path: str | os.PathLike[str], *, make: bool = False) -> int:
    """A descriptor of a folder that only this user can enter (FolderError, OSError).

    It is made where it is missing, if that is wanted.
    """
    return _opened(path, _require_private, make)


def require_private(path: str | os.PathLike[str]) -> None:
    """Refuses a folder that others can enter (FolderError, OSError); nothing on Windows."""
    if hasattr(os, "geteuid"):
        os.close(open_ours(path))


def require_kept(path: str | os.PathLike[str]) -> None:
    """Refuses a folder whose files others can replace, as where data are kept (FolderError)."""
    os.close(_opened(path, _require_kept, make=False))


def _opened(
    path: str | os.PathLike[str], require: Callable[[os.stat_result], None], make: bool
) -> int:
    parent, name = os.path.split(os.path.abspath(path))
    way = _walk(parent)
    try:
        if make:
            with suppress(FileExistsError):
                os.mkdir(name or ".", 0o700, dir_fd=way)
        found = os.stat(name or ".", dir_fd=way, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            raise FolderError("it is not a directory")
        folder = os.open(
            name or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=way
        )
    finally:
        os.close(way)
    try:
        require(os.fstat(folder))
    except BaseException:
        os.close(folder)
        raise
    return folder


def is_own_socket(path: str) -> bool:
    """Whether this user's socket is there (FolderError where another user's file is)."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    if found.st_uid != os.geteuid():
        raise FolderError(f"what is there belongs to user {found.st_uid}, not {os.geteuid()}")
    return stat.S_ISSOCK(found.st_mode)


def _require_private(found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise _others(found)
    if found.st_mode & 0o077:
        raise FolderError(
            f"others can enter it (mode {stat.S_IMODE(found.st_mode):04o}); make it 0700, or name "
            "one that is missing"
        )


def _require_kept(found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()):  # root's, who lends it to a group
        raise _others(found)
    if found.st_mode & stat.S_IWOTH:
        raise FolderError(
            f"everybody can write to it (mode {stat.S_IMODE(found.st_mode):04o}); make it 0700, or "
            "name one that is missing"
        )


def _others(found: os.stat_result) -> FolderError:
    return FolderError(
        f"it belongs to user {found.st_uid} and the server runs as {os.geteuid()}; name one of its "
        "own"
    )


def _walk(path: str) -> int:
    """A descriptor of a folder, by a path that nobody else can make lead elsewhere."""
    folder = os.open("/", _PASS)
    try:
        _require_safe(folder, "/")
        parts, links, walked = path.split("/")[::-1], 0, "/"
        while parts:
            name = parts.pop()
            if name in ("", "."):
                continue
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                if found.st_uid not in (0, os.geteuid()):
                    raise FolderError(
                        f"the symbolic link {os.path.join(walked, name)} on the way to it belongs "
                        f"to user {found.st_uid}; name a path without it"
                    )
                links += 1
                if links > _LINKS:
                    raise FolderError("its path has too many symbolic links")
                target = os.readlink(name, dir_fd=folder)
                parts += target.split("/")[::-1]
                if not target.startswith("/"):
                    continue
                name = "/"
            walked = os.path.normpath(os.path.join(walked, name))
            below = os.open(name, _PASS, dir_fd=folder)
            os.close(folder)
            folder = below
            _require_safe(folder, walked)
    except BaseException:
        os.close(folder)
        raise
    return folder


def _require_safe(folder: int, path: str) -> None:
    """Refuses a folder whose entries others can replace."""
    found = os.fstat(folder)
    if found.st_uid not in (0, os.geteuid()):
        raise FolderError(
            f"{path} on the way to it belongs to user {found.st_uid}, who could replace it; name "
            "one whose parents are root's or this user's"
        )
    others = stat.S_IWOTH
    if found.st_gid not in (0, os.getegid()):  # a user's own group is the user
        others |= stat.S_IWGRP
    if found.st_mode & others and not found.st_mode & stat.S_ISVTX:
        raise FolderError(
            f"{path} on the way to it can be written by others (mode "
            f"{stat.S_IMODE(found.st_mode):04o}), who could replace it; name another one"
        )
