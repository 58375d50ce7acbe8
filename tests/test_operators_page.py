"""docs/operators.md is what the records say, and what is served elsewhere is there."""
from __future__ import annotations

from pathlib import Path

from haian.kernels.ops import OPS

import haian
from haian.operators_page import ELSEWHERE, page

DOCS = Path(__file__).resolve().parent.parent / "docs/operators.md"


def test_the_page_is_the_records():
    assert DOCS.read_text() == page(), "docs/operators.md is old: run `haian ops page > docs/operators.md`"
    assert all(f"`{record.schema}`".replace("|", "\\|") in page() for record in OPS.values())


def test_elsewhere_is_no_operator_and_exists():
    assert not set(ELSEWHERE) & set(OPS)
    assert callable(haian.empty) and all(hasattr(haian.Tensor, name) for name in ("item", "reshape", "contiguous", "to", "permute"))
