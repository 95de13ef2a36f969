"""The table of docs/gates.md says what the tests run."""

from __future__ import annotations

from pathlib import Path

import conformance

PAGE = Path(__file__).parent.parent / "docs" / "gates.md"


def test_table_of_the_docs_counts_what_the_tests_run() -> None:
    assert "".join(conformance.section()) in PAGE.read_text(), "run scripts/generate"
