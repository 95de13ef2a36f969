"""Saved graphs: bytes by their SHA-256, and names that refer to them."""

from __future__ import annotations

from gradwire_server.limits import Limits
from gradwire_server.store.base import ABSENT, Place, Saved, Store, StoreError
from gradwire_server.store.memory import MemoryStore

__all__ = ["ABSENT", "MemoryStore", "Place", "Saved", "Store", "StoreError", "open_store"]


def open_store(place: str, limits: Limits) -> Store:
    """The store in a directory, made where it is missing, or at s3://bucket/prefix (StoreError)."""
    if place.startswith("s3://"):
        from gradwire_server.store.s3 import S3Store

        return S3Store(place, limits)
    from gradwire_server.store.sqlite import SqliteStore

    return SqliteStore(place, limits)
