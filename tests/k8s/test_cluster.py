"""The cluster itself: that a plain pod runs and goes, so that a failure elsewhere is not its fault."""

import cluster as k8s


def plain(name, command, **more):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 2,
            "containers": [{"name": "main", "image": k8s.PYTHON, "command": command, **more}],
        },
    }


def test_a_plain_pod_reads_the_origin_with_boto3(namespace, origin):
    read = f"""
import boto3, hashlib
s3 = boto3.client("s3", endpoint_url="{origin.endpoint}", region_name="us-east-1",
                  aws_access_key_id="origin-access", aws_secret_access_key="origin-secret-key")
for line in open("/expected/SHA256SUMS"):
    digest, key = line.split()
    assert hashlib.sha256(s3.get_object(Bucket="training", Key=key)["Body"].read()).hexdigest() == digest, key
print("verified")
"""
    namespace.apply(*origin.objects())
    pod = plain("reader", ["python3", "-c", read], volumeMounts=[{"name": "expected", "mountPath": "/expected"}])
    pod["spec"]["volumes"] = [{"name": "expected", "configMap": {"name": "expected"}}]
    namespace.create(pod)
    namespace.wait_phase("reader", "Succeeded")
    assert "verified" in namespace.logs("reader", "main")
