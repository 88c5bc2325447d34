"""Fixtures: real origins, one sidecar in front of all of them, and its buckets."""

import uuid

import harness
import pytest


@pytest.fixture(scope="session")
def origins():
    started = harness.Origins(harness.KINDS)
    yield started
    started.close()


@pytest.fixture(scope="session")
def sidecar(origins):
    """One process in front of every origin at once; its S3 keys are static."""
    backends = [
        harness.backend(kind, kind, origins) for kind in harness.KINDS if kind not in origins.skipped
    ]
    running = harness.start_sidecar(origins, backends)
    yield running
    running.close()


@pytest.fixture(scope="session")
def anonymous_sidecar(origins):
    """Another process, without keys, in front of the local directory and versitygw."""
    backends = [
        harness.backend(kind, kind, origins)
        for kind in ("local", "versitygw")
        if kind not in origins.skipped
    ]
    running = harness.start_sidecar(origins, backends, access=harness.ANONYMOUS_ACCESS, mount=False)
    yield running
    running.close()


@pytest.fixture(params=harness.KINDS)
def bucket(request, origins):
    """The name of a bucket on the sidecar; each test that uses it runs on every origin."""
    kind = request.param
    if kind in origins.skipped:
        if harness.REQUIRED:
            pytest.fail(f"required but not available: {origins.skipped[kind]}")
        pytest.skip(origins.skipped[kind])
    return kind


@pytest.fixture
def prefix(request):
    """A folder of its own for each test: all tests of a session share their buckets."""
    return f"{request.node.originalname}-{uuid.uuid4().hex[:8]}/"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows what the sidecar said last."""
    report = yield
    if report.failed:
        for name in ("sidecar", "anonymous_sidecar"):
            running = item.funcargs.get(name)
            if running:
                report.sections.append((f"the end of the log of {name}", running.log()[-3000:]))
    return report
