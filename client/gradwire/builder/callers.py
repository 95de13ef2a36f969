"""Which line of the user's program called."""

from __future__ import annotations

import os
import sys

import numpy as np

_GRADWIRE = os.path.dirname(os.path.dirname(__file__)) + os.sep
_NUMPY = os.path.dirname(np.__file__) + os.sep
_PASSED_OVER = (_GRADWIRE, _NUMPY)


def caller() -> str:
    """The nearest line outside of `gradwire` and NumPy: the user's."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename.startswith(_PASSED_OVER) and frame.f_back is not None:
        frame = frame.f_back
    name = os.path.basename(frame.f_code.co_filename)
    return sys.intern(f"{name}:{frame.f_lineno}")
