"""The pod written by hand (examples/kubernetes/pod.yaml): what it mounts, serves, and leaves behind."""

import time

import pods


def test_the_pod_of_the_example_reads_everything_and_completes(namespace, image, origin):
    namespace.apply(*origin.objects())
    pod = pods.by_hand(command=pods.VERIFY_ONCE)
    with pods.watching(namespace) as watch:
        namespace.create(pod)
        namespace.wait_phase("training", "Succeeded", 90)
        complete = watch.first("complete", lambda _, found: found["status"].get("phase") == "Succeeded")
    log = namespace.logs("training", "main")
    assert f"verified {len(origin.sums)} files" in log, log
    assert f"verified {len(origin.sums)} objects" in log, log
    ended = pods.ended(log)
    print(f"pod complete {complete - ended:.2f} s after its main container's last line")
    # Kubelet sees an end within a second and takes two for a pod with sidecars (test_times.py compares).
    assert complete - ended < 8
    namespace.delete_pod("training", 30)
    assert origin.whole()
