"""Fixtures of the chart's tests: real Helm, without a cluster. The tests with one are in tests/k8s."""

import pytest

import harness


@pytest.fixture(scope="session", autouse=True)
def helm():
    """Helm, or a skip that says what is missing (a failure where tests/run wants everything)."""
    return harness.helm()
