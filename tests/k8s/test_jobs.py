"""Jobs with WarpDrive beside them: every byte through FUSE and through S3 with unmodified boto3, then gone."""

import pods
import pytest


def complete(namespace, job, seconds=90):
    namespace.kubectl("wait", "--for=condition=complete", f"job/{job}", f"--timeout={seconds}s", timeout=seconds + 10)


def pod_of(namespace, job):
    found = namespace.pods(f"job-name={job}")
    assert len(found) == 1, [pod["metadata"]["name"] for pod in found]
    return found[0]


def run(namespace, origin, pod, seconds=90, **configuration):
    """Creates it as a Job with everything it names; its pod and its main container's log once it is complete."""
    namespace.apply(*origin.objects(**configuration))
    namespace.create(*pods.injected(pods.as_job(pod, "job")))
    complete(namespace, "job", seconds)
    found = pod_of(namespace, "job")
    log = namespace.logs(found["metadata"]["name"], "main")
    namespace.kubectl("delete", "job", "job", "--timeout=60s")
    assert origin.whole()
    return found, log


def names(pod, kind="initContainers"):
    return [container["name"] for container in pod["spec"].get(kind, [])]


def test_a_job_reads_files_and_objects(namespace, image, origin):
    """The main container is nobody's: no root, no capability, no writable root."""
    pod, log = run(namespace, origin, pods.wanted("job"))
    assert f"verified {len(origin.sums)} files" in log and f"verified {len(origin.sums)} objects" in log, log
    assert names(pod) == ["warpdrive-mountd", "warpdrive"]
    privileged = [
        container["name"] for kind in ("initContainers", "containers") for container in pod["spec"][kind]
        if container.get("securityContext", {}).get("privileged")
    ]
    assert privileged == ["warpdrive-mountd"]


def test_a_job_in_s3_mode_runs_where_restricted_is_enforced(make_namespace, image, origin):
    namespace = make_namespace(labels=pods.ENFORCED)
    # The level is enforced: the privileged form of the same pod is refused.
    refused = namespace.create(*pods.injected(pods.wanted("refused")), check=False)
    assert refused.returncode and 'violates PodSecurity "restricted' in refused.stderr, refused
    pod, log = run(namespace, origin, pods.wanted("job", pods.VERIFY_OBJECTS, {"mode": "s3"}))
    assert f"verified {len(origin.sums)} objects" in log, log
    assert names(pod) == ["warpdrive"]


def test_init_containers_and_sidecars_of_the_user_keep_their_places(namespace, image, origin):
    """A user's init container and native sidecar read the mount too, before and beside the main container."""
    look = "test \"$(find /data/train -type f | wc -l)\" = {count} && echo seen".format(count=len(origin.sums))
    mine = [
        {"name": "prepare", "image": "localhost/wd-box:1", "command": ["sh", "-c", look]},
        {
            "name": "beside", "image": "localhost/wd-box:1", "restartPolicy": "Always",
            "command": ["sh", "-c", f"trap 'exit 0' TERM; {look}; while :; do sleep 0.2; done"],
            "startupProbe": {"exec": {"command": ["sh", "-c", look]}, "periodSeconds": 1},
        },
    ]
    namespace.apply(*origin.objects())
    namespace.create(*pods.injected(pods.as_job(pods.wanted("job", pods.VERIFY_FILES, spec={"initContainers": mine}), "job")))
    complete(namespace, "job")
    pod = pod_of(namespace, "job")
    assert names(pod) == ["warpdrive-mountd", "warpdrive", "prepare", "beside"]
    for container in ("prepare", "beside"):
        assert "seen" in namespace.logs(pod["metadata"]["name"], container)
    namespace.kubectl("delete", "job", "job", "--timeout=60s")


def test_prewarm_fetches_before_the_main_container_starts(namespace, image, origin):
    """The main container finds the cache full: what the origin was told meanwhile is printed
    (test_examples.py asserts that it was nothing)."""
    check = [
        "python3", "-c",
        "import json, urllib.request\n"
        "text = urllib.request.urlopen('http://127.0.0.1:9091/metrics').read().decode()\n"
        "print('fetched', [l for l in text.splitlines() if l.startswith('warpdrive_origin_bytes') or 'received_bytes' in l])\n"
        + pods.READER,
        "files",
    ]
    pod, log = run(namespace, origin, pods.wanted("job", check, {"warm": "all"}))
    assert f"verified {len(origin.sums)} files" in log, log
    assert names(pod) == ["warpdrive-mountd", "warpdrive", "warpdrive-warm"]
    warm = next(s for s in pod["status"]["initContainerStatuses"] if s["name"] == "warpdrive-warm")
    assert warm["state"]["terminated"]["exitCode"] == 0, warm


@pytest.mark.parametrize("cache", ["emptyDir", "memory"])
def test_other_places_for_mount_and_cache(make_namespace, image, origin, cache):
    namespace = make_namespace(f"-{cache.lower()}")
    command = ["python3", "-c", "import os; os.environ['DATA'] = '/in/puts/train'\n" + pods.READER, "files", "objects"]
    annotations = {"mounts": "/in/puts,/again", "cache": cache, "s3-port": "9800", "admin-port": "9801", "memory": "32Mi"}
    if cache == "memory":
        annotations["cache-size"] = None
    _, log = run(namespace, origin, pods.wanted("job", command, annotations))
    assert f"verified {len(origin.sums)} files" in log and f"verified {len(origin.sums)} objects" in log, log


def test_a_container_with_keys_of_its_own_keeps_them(namespace, image, origin):
    """The user's endpoint and keys win; the mount is there all the same."""
    own = [{"name": "AWS_ENDPOINT_URL_S3", "value": origin.endpoint}, {"name": "AWS_ACCESS_KEY_ID", "value": "origin-access"},
           {"name": "AWS_SECRET_ACCESS_KEY", "value": "origin-secret-key"}]
    command = ["python3", "-c", pods.READER.replace('"train"', '"training"'), "files", "objects"]
    _, log = run(namespace, origin, pods.wanted("job", command, env=own))
    assert f"verified {len(origin.sums)} objects" in log, log
