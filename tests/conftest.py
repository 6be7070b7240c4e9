import os

import pytest


def pytest_collection_modifyitems(items):
    """Tests of real pictures are skipped, with the reason, where no folder of them is named."""
    if "BENCH_DATA" not in os.environ:
        for item in items:
            if item.get_closest_marker("realdata"):
                item.add_marker(pytest.mark.skip(reason="BENCH_DATA names no folder of real pictures"))
