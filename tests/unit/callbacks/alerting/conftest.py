"""What the tests of `alerting` share."""

from __future__ import annotations

import pytest

from tests.support.alert_records import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()
