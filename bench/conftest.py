"""Makes ``pytest bench/ --benchmark-only`` work where the project's own options switch benchmarks off for the test suite."""
from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("benchmark_only", default=False):
        config.option.benchmark_disable = False
