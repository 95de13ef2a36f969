"""What a file is that is no graph, by its first bytes: people know formats, not bytes."""

from __future__ import annotations

#: First bytes, and where they stand; the first entry that fits counts.
_STARTS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it; export the model as ONNX"),
    (0, b"\x93NUMPY", "a NumPy array (.npy)"),
    (4, b"TFL3", "a TensorFlow Lite model; export the model as ONNX"),
    (0, b"GGUF", "a GGUF file, which holds weights without a graph"),
    (5, b'\x00\x00\x00{"', "a safetensors file, which holds weights without a graph"),
    (0, b"PK\x03\x04", "a ZIP archive, as .npz and PyTorch's .pt are; export a model as ONNX"),
    (0, b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (0, b"BZh", "compressed with bzip2; unpack it first"),
    (0, b"\xfd7zXZ\x00", "compressed with xz; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with Zstandard; unpack it first"),
    (0, b"\x7fELF", "a program"),
    (0, b"version https://git-l", "a pointer of Git LFS, not the file itself; run git lfs pull"),
    (0, b"gradwire text", "a graph's text form; read it with gradwire parse"),
    (0, b"\n\x0egradwire graph", "a graph file; give it a name that ends in .gate"),
    (0, b"gradwire blobs", "large values of a graph; open the .gate file beside it"),
)
_ONNX_FIELDS = b"\x12\x1a\x22\x28\x32\x3a\x42"  # keys that follow the first one of a model
_NEWEST_ONNX = 32  # of its format, with room for what comes


def kind_of(head: bytes) -> str:
    """What a file with these first bytes is, with an article."""
    for place, start, kind in _STARTS:
        if head[place : place + len(start)] == start:
            return kind
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "a Python pickle, as older .pt files are; export a model as ONNX"
    if len(head) > 2 and head[0] == 8 and head[1] <= _NEWEST_ONNX and head[2] in _ONNX_FIELDS:
        return "an ONNX model; give it a name that ends in .onnx"
    text = head.decode(errors="ignore").lstrip()
    if len(text.encode()) < len(head.strip()) - 3 or not all(map(_is_readable, text)):
        return "of no kind known here"
    if text.lower().startswith(("<!doctype html", "<html")):
        return "a web page"
    return "JSON" if text.startswith(("{", "[")) else "text"


def _is_readable(letter: str) -> bool:
    return letter.isprintable() or letter in "\t\r\n\f"
