"""``import haian.ops`` and ``from haian.ops import exp``: another name of kernels/api.py, the very same module.

Nothing else is here.
"""
from __future__ import annotations

import sys

from .kernels import api

sys.modules[__name__] = api
