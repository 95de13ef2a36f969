"""Writes the table in docs/onnx.md: runs ONNX's node tests and says how each ended."""

from __future__ import annotations

from pathlib import Path

from gradwire import onnx_backend
from gradwire.onnx.conformance import node_tests, outcomes, table

PATH = Path(__file__).parent.parent / "docs" / "onnx.md"
START, END = "<!-- table -->\n", "<!-- end of table -->\n"


def main() -> None:
    before, rest = PATH.read_text().split(START)
    after = rest.split(END)[1]
    found = table(outcomes(node_tests(), onnx_backend.run_model))
    PATH.write_text(f"{before}{START}\n{found}\n{END}{after}")


main()
