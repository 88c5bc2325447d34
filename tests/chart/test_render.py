"""Every mode and combination of values: what Helm makes of it is valid for every Kubernetes from 1.29 on,
and is what the chart promises (levels of Pod Security, rights, who is injected)."""

import json

import kubernetes_validate
import policies as policies_of
import pytest
import yaml

from harness import BACKEND, CHART, EVERYTHING, VERSIONS, one, pod_templates, refusal, render, rendering, run_helm

# Kinds of other projects: the schemas of Kubernetes do not have them.
FOREIGN = {
    "monitoring.coreos.com/v1": {"ServiceMonitor", "PodMonitor", "PrometheusRule"},
    "cert-manager.io/v1": {"Issuer", "Certificate"},
}
CERTIFICATES = {
    "own": {},
    "cert-manager": {"webhook": {"certificates": {"mode": "cert-manager"}}},
    "cert-manager with an issuer": {
        "webhook": {"certificates": {"mode": "cert-manager", "certManager": {"issuerRef": {"kind": "ClusterIssuer", "name": "ca"}}}}
    },
    "secret": {"webhook": {"certificates": {"mode": "secret", "secretName": "tls", "caBundle": "QUJD"}}},
}
COMBINATIONS = {
    "defaults": {},
    "everything": EVERYTHING,
    "none": {"injection": {"mode": "none"}},
    "node service alone": {"injection": {"mode": "none"}, "csi": {"enabled": True}},
    "node agent of the Go project": {
        "injection": {"mode": "none"},
        "nodeAgent": {"enabled": True},
        "agent": {
            "image": {"repository": "acme/warpdrive", "tag": "9"},
            "mountPoint": "/mnt/data",
            "cachePath": "/nvme/cache",
            "nodeSelector": {"nvidia.com/gpu": "true"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "resources": {"requests": {"cpu": 2, "memory": "4Gi"}, "limits": {"memory": "8Gi"}},
        },
        "controlPlane": {"enabled": False, "replicas": 3},
        "config": {"cache": {"maxSize": "2TB", "blockSize": "4MiB", "readaheadBlocks": 4, "maxParallelFetch": 16}, "backends": [BACKEND]},
        "metrics": {"port": 9095},
        "serviceAccount": {"create": True, "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}},
        "pdb": {"enabled": True, "minAvailable": 1},
    },
    "host network": {"webhook": {"hostNetwork": True, "port": 9443}},
    "no accounts": {"serviceAccount": {"create": False}, "csi": {"enabled": True, "serviceAccountName": "mine"}},
    "digest": {"image": {"registry": "registry.example:5000", "digest": "sha256:" + "0" * 64}},
    "one replica, no budget": {"webhook": {"replicas": 1}, "pdb": {"enabled": False}, "test": {"enabled": False}},
    **{f"certificates: {name}": values for name, values in CERTIFICATES.items() if values},
}
POLICY_FROM = 34


def has_policies(version):
    return int(version.split(".")[1]) >= POLICY_FROM


def validate(objects, version):
    for o in objects:
        if o["kind"] in FOREIGN.get(o["apiVersion"], ()):
            continue
        kubernetes_validate.validate(o, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_objects_are_valid(name, version):
    objects = render(COMBINATIONS[name], version=version)
    validate(objects, version)
    keys = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(keys) == len(set(keys)), "an object is there twice"


@pytest.mark.parametrize("version", [v for v in VERSIONS if has_policies(v)])
def test_policy_objects_are_valid(version):
    objects = render({"injection": {"mode": "policy"}, "csi": {"enabled": True}}, version=version)
    validate(objects, version)
    kinds = [o["kind"] for o in objects]
    assert kinds.count("MutatingAdmissionPolicy") >= 1
    assert "MutatingWebhookConfiguration" not in kinds and "Deployment" not in kinds


POLICY_KINDS = ("MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")


@pytest.mark.parametrize("version, api", [("1.34.0", "v1beta1"), ("1.35.0", "v1beta1"), ("1.36.0", "v1"), ("1.37.0", "v1")])
def test_policy_is_of_the_version_that_is_there(version, api):
    for o in render({"injection": {"mode": "policy"}}, version=version):
        if o["kind"] in POLICY_KINDS:
            wanted = api if o["kind"].startswith("Mutating") else "v1"
            assert o["apiVersion"] == f"admissionregistration.k8s.io/{wanted}"


@pytest.mark.parametrize("mode", policies_of.MODES)
def test_policy_is_what_the_program_prints_for_these_values(mode):
    """Byte by byte in every expression: image, sizes and mode of the values have got to where they belong."""
    settings = f"image: registry.example/w:7\nimage_pull_policy: Always\nannotations: {{mode: {mode}, cache-size: 33Gi, memory: 99Mi}}\n"
    text = policies_of.printed(settings)
    # The one difference: the chart lets CEL count what the program has counted.
    text = text.replace(str(33 << 30), 'quantity("33Gi").asInteger()').replace(str(99 << 20), 'quantity("99Mi").asInteger()')
    printed = [o for o in yaml.safe_load_all(text) if o]
    values = {
        "image": {"registry": "registry.example", "repository": "w", "tag": "7", "pullPolicy": "Always"},
        "injection": {"mode": "policy", "annotations": {"mode": mode, "cache-size": "33Gi", "memory": "99Mi"}},
    }
    rendered = [o for o in render(values) if o["kind"] in POLICY_KINDS]
    excluded = {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", "kube-public", "kube-node-lease"]}
    assert len(rendered) == len(printed) == 6
    for theirs in printed:
        ours = one(rendered, theirs["kind"], theirs["metadata"]["name"])
        if theirs["kind"].endswith("Binding"):
            theirs["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"].append(excluded)
        assert ours["spec"] == theirs["spec"]
    # The same, given as a text.
    given = {"injection": {"mode": "policy", "policy": text}}
    assert [o for o in render(given) if o["kind"] in POLICY_KINDS] == rendered


@pytest.mark.parametrize(
    "values, said",
    [
        ({"annotations": {"warm": "all"}}, "injection.annotations.warm"),
        ({"annotations": {"cache-size": "50GB"}}, "injection.annotations.cache-size: with injection by policy"),
        ({"imagePullSecrets": ["a"]}, "--set-file injection.policy=FILE"),
        ({"resources": {"worker": {"limits": {"cpu": "1"}}}}, "--set-file injection.policy=FILE"),
    ],
)
def test_policy_refuses_what_it_has_no_place_for(values, said):
    assert said in refusal({"injection": {"mode": "policy"} | values})


def test_policy_is_refused_where_there_is_none():
    assert "1.34" in refusal({"injection": {"mode": "policy"}}, version="1.33.0")


def test_older_kubernetes_is_refused():
    assert "1.29" in refusal({}, version="1.28.0")


def test_lint_is_strict():
    for values in (EVERYTHING, {}):
        result = run_helm("lint", "--strict", CHART, "-f", "-", text=yaml.safe_dump(values))
        assert result.returncode == 0, result.stdout + result.stderr


def test_everything_appears():
    kinds = {o["kind"] for o in render(EVERYTHING)}
    assert kinds >= {
        "Deployment", "DaemonSet", "Service", "ServiceAccount", "Secret", "ConfigMap", "Role", "RoleBinding",
        "ClusterRole", "ClusterRoleBinding", "MutatingWebhookConfiguration", "PodDisruptionBudget", "CSIDriver",
        "NetworkPolicy", "ServiceMonitor", "PodMonitor", "PrometheusRule", "Pod",
    }


@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_object_is_labelled_and_ours(name):
    for o in render(COMBINATIONS[name]):
        labels = o["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "warpdrive" and labels["helm.sh/chart"].startswith("warpdrive-")
        if o["kind"] not in ("ClusterRole", "ClusterRoleBinding", "MutatingWebhookConfiguration", "CSIDriver"):
            assert o["metadata"].get("namespace"), f"{o['kind']} without a namespace"
    for o, spec, metadata in pod_templates(render(COMBINATIONS[name])):
        if o["kind"] != "Pod":
            assert metadata["labels"]["warpdrive.io/inject"] == "false", "our own pods must not wait for the webhook"
            selector = o["spec"]["selector"]["matchLabels"]
            assert selector.items() <= metadata["labels"].items()
            assert not any("version" in key or "chart" in key for key in selector), "a selector can never change"


def test_selectors_do_not_overlap():
    """A Service or a set that selects another part's pods would serve with them, or delete them."""
    objects = render(EVERYTHING)
    templates = [(o, m["labels"]) for o, _, m in pod_templates(objects)]
    for o in objects:
        if o["kind"] in ("Deployment", "DaemonSet"):
            selector = o["spec"]["selector"]["matchLabels"]
        elif o["kind"] == "Service":
            selector = o["spec"]["selector"]
        else:
            continue
        chosen = [t for t, labels in templates if selector.items() <= labels.items()]
        assert len(chosen) == 1, f"{o['kind']} {o['metadata']['name']} selects {len(chosen)} parts"


def restricted(spec):
    """What the restricted level of Pod Security has against a pod: a list of sentences."""
    wrong = []
    pod = spec.get("securityContext", {})
    if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        wrong.append("a namespace of the host")
    for volume in spec.get("volumes", []):
        kind = next(iter(set(volume) - {"name"}))
        if kind not in ("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"):
            wrong.append(f"volume {kind}")
    for c in spec.get("initContainers", []) + spec["containers"]:
        own = c.get("securityContext", {})
        if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
            wrong.append(f"{c['name']} may become more")
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
            wrong.append(f"{c['name']} keeps capabilities")
        if not own.get("runAsNonRoot", pod.get("runAsNonRoot")) or own.get("runAsUser", pod.get("runAsUser")) == 0:
            wrong.append(f"{c['name']} may be root")
        if own.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in ("RuntimeDefault", "Localhost"):
            wrong.append(f"{c['name']} without seccomp")
        if not own.get("readOnlyRootFilesystem"):
            wrong.append(f"{c['name']} writes into its image")
        if any(port.get("hostPort") for port in c.get("ports", [])):
            wrong.append(f"{c['name']} has a port of the host")
    return wrong


@pytest.mark.parametrize("name", CERTIFICATES)
def test_the_webhook_passes_the_restricted_level(name):
    objects = render(CERTIFICATES[name])
    deployment = one(objects, "Deployment")
    assert restricted(deployment["spec"]["template"]["spec"]) == []
    assert restricted(one(objects, "Pod")["spec"]) == []
    limit = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
    assert limit == "64Mi"


def test_the_restricted_check_can_fail():
    agent = one(render(EVERYTHING), "DaemonSet", component="node-agent-holder")
    assert len(restricted(agent["spec"]["template"]["spec"])) >= 4


def test_only_holders_and_the_node_service_are_privileged():
    privileged = set()
    for o, spec, _ in pod_templates(render(EVERYTHING)):
        for c in spec["containers"]:
            if c["securityContext"].get("privileged"):
                privileged.add((o["metadata"]["labels"]["app.kubernetes.io/component"], c["name"]))
            else:
                assert c["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                assert c["securityContext"]["allowPrivilegeEscalation"] is False
            assert c["securityContext"]["readOnlyRootFilesystem"] is True
    assert privileged == {("csi", "csi"), ("node-agent-holder", "warpdrive-mountd")}


def test_rights_are_the_least():
    """Three verbs on two objects, by name; and only with an authority of the webhook's own."""
    objects = render(EVERYTHING)
    role, everywhere = one(objects, "Role"), one(objects, "ClusterRole")
    secret = one(objects, "Secret")
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [secret["metadata"]["name"]], "verbs": ["get", "update"]}
    ]
    assert everywhere["rules"] == [
        {
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["mutatingwebhookconfigurations"],
            "resourceNames": [one(objects, "MutatingWebhookConfiguration")["metadata"]["name"]],
            "verbs": ["get", "patch"],
        }
    ]
    assert not {"data", "stringData"} & set(secret), "an upgrade would take the keys away"
    for o, spec, _ in pod_templates(objects):
        assert spec["automountServiceAccountToken"] is (o["kind"] == "Deployment")
    for name in ("cert-manager", "secret"):
        objects = render(CERTIFICATES[name])
        assert not {"Role", "ClusterRole", "Secret"} & {o["kind"] for o in objects}
        assert one(objects, "Deployment")["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


def test_bundle_is_rendered_only_where_it_is_the_users():
    for name, values in CERTIFICATES.items():
        configuration = one(render(values), "MutatingWebhookConfiguration")
        for webhook in configuration["webhooks"]:
            assert webhook["clientConfig"].get("caBundle") == ("QUJD" if name == "secret" else None)
        annotation = configuration["metadata"].get("annotations", {}).get("cert-manager.io/inject-ca-from")
        assert annotation == ("warpdrive/warpdrive-webhook" if name.startswith("cert-manager") else None)


def matches(selector, labels):
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for e in selector.get("matchExpressions", []):
        if e["operator"] == "In" and labels.get(e["key"]) not in e["values"]:
            return False
        if e["operator"] == "NotIn" and labels.get(e["key"]) in e["values"]:
            return False
    return True


@pytest.mark.parametrize("namespace", ["ml", "kube-system", "warpdrive"])
@pytest.mark.parametrize("of_namespace", [None, "true", "false"])
@pytest.mark.parametrize("of_pod", [None, "true", "false", "yes"])
def test_who_is_injected(namespace, of_namespace, of_pod):
    """The table of the two entries: the pod's label wins, kube-system never, the own namespace only pods that ask."""
    configuration = one(render({}), "MutatingWebhookConfiguration")
    pod = {"warpdrive.io/inject": of_pod} if of_pod else {}
    around = {"kubernetes.io/metadata.name": namespace} | ({"warpdrive.io/inject": of_namespace} if of_namespace else {})
    called = sum(matches(w["objectSelector"], pod) and matches(w["namespaceSelector"], around) for w in configuration["webhooks"])
    wanted = of_pod == "true" or (of_pod != "false" and of_namespace == "true" and namespace != "warpdrive")
    assert called == (1 if wanted and namespace != "kube-system" else 0)


def test_fail_is_confined():
    for webhook in one(render({}), "MutatingWebhookConfiguration")["webhooks"]:
        assert webhook["failurePolicy"] == "Fail" and webhook["reinvocationPolicy"] == "IfNeeded"
        assert webhook["sideEffects"] == "None" and webhook["timeoutSeconds"] <= 10
        assert webhook["objectSelector"] and webhook["namespaceSelector"]
        assert webhook["rules"] == [
            {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "scope": "Namespaced"}
        ]


def test_certificate_names_are_the_services():
    objects = render(CERTIFICATES["cert-manager"])
    service = one(objects, "Service")["metadata"]["name"]
    leaf = one(objects, "Certificate", name="warpdrive-webhook")
    assert f"{service}.warpdrive.svc" in leaf["spec"]["dnsNames"]
    mounted = one(objects, "Deployment")["spec"]["template"]["spec"]["volumes"][1]["secret"]["secretName"]
    assert leaf["spec"]["secretName"] == mounted
    chain = {o["metadata"]["name"] for o in objects if o["kind"] in ("Issuer", "Certificate")}
    assert chain == {"warpdrive-webhook", "warpdrive-webhook-authority", "warpdrive-webhook-self-signed"}
    with_issuer = render(CERTIFICATES["cert-manager with an issuer"])
    assert [o["kind"] for o in with_issuer if o["apiVersion"].startswith("cert-manager")] == ["Certificate"]


def test_settings_reach_the_webhook_and_restart_it():
    values = {"injection": {"annotations": {"cache-size": "50Gi", "flush-seconds": 1000000, "read-only": False}, "imagePullSecrets": ["registry"]}}
    objects = render(values)
    settings = yaml.safe_load(one(objects, "ConfigMap", name="warpdrive-settings")["data"]["settings.yaml"])
    assert settings["annotations"] == {"cache-size": "50Gi", "flush-seconds": "1000000", "read-only": "false"}
    assert settings["image"] == "warpdrive:0.1.0" and settings["image_pull_secrets"] == ["registry"]
    template = one(objects, "Deployment")["spec"]["template"]
    before = one(render({}), "Deployment")["spec"]["template"]
    assert template["metadata"]["annotations"]["checksum/settings"] != before["metadata"]["annotations"]["checksum/settings"]
    assert template["spec"] == before["spec"]


def test_images():
    digest = "sha256:" + "0" * 64
    for values, expected in (
        ({}, "warpdrive:0.1.0"),
        ({"image": {"tag": "7"}}, "warpdrive:7"),
        ({"image": {"registry": "registry.example:5000", "digest": digest}}, f"registry.example:5000/warpdrive@{digest}"),
    ):
        for values in (values, {"injection": {"mode": "none"}, "csi": {"enabled": True}, **values}):
            for _, spec, _ in pod_templates(render(values)):
                assert [c["image"] for c in spec["containers"]] == [expected]
    own = render({"webhook": {"image": {"tag": "8"}}})
    assert one(own, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"] == "warpdrive:8"


def test_node_agent_takes_the_names_of_the_go_project():
    objects = render(COMBINATIONS["node agent of the Go project"])
    config = yaml.safe_load(one(objects, "ConfigMap")["data"]["warpdrive.yaml"])
    assert config["cache"] == {
        "path": "/var/cache/warpdrive", "max_size": "2TB", "block_size": "4MiB", "readahead_blocks": 4, "max_parallel_fetch": 16,
    }
    assert config["backends"] == [BACKEND] and config["metrics"]["addr"] == ":9095"
    worker, holder = one(objects, "DaemonSet", component="node-agent"), one(objects, "DaemonSet", component="node-agent-holder")
    spec = worker["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"nvidia.com/gpu": "true"} and spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert spec["containers"][0]["image"] == "acme/warpdrive:9"
    assert {"name": "cache", "hostPath": {"path": "/nvme/cache", "type": "DirectoryOrCreate"}} in spec["volumes"]
    volumes = holder["spec"]["template"]["spec"]["volumes"]
    assert volumes[0]["hostPath"]["path"] == "/mnt", "the folder above: a dead mount must not be a volume's root"
    assert holder["spec"]["updateStrategy"] == {"type": "OnDelete"}, "an upgrade must not unmount under readers"
    point = holder["spec"]["template"]["spec"]["containers"][0]["command"]
    assert point[point.index("--mount-point") + 1] == "/host/data"
    account = one(objects, "ServiceAccount")
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}


def test_the_holder_of_the_node_agent_changes_only_with_what_it_is():
    """What is the worker's alone leaves the holder's pods as they are."""
    def holder(values):
        merged = {"nodeAgent": {"enabled": True, "nodeSelector": None}, "config": {"backends": [BACKEND]}} | values
        return one(render(merged), "DaemonSet", component="node-agent-holder")["spec"]

    assert holder({}) == holder({"config": {"backends": [BACKEND, BACKEND | {"name": "b"}]}, "metrics": {"port": 1234}})


def test_configurations_of_namespaces():
    objects = render(EVERYTHING)
    found = {o["metadata"]["namespace"]: o["data"]["warpdrive.yaml"] for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == "warpdrive"}
    assert yaml.safe_load(found["ml"]) == {"backends": [BACKEND]}
    assert found["research"] == "backends: []\n"


def test_monitoring_is_found_by_the_names_it_has():
    objects = render(EVERYTHING)
    service = one(objects, "Service")
    monitor = one(objects, "ServiceMonitor")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] in [p["name"] for p in service["spec"]["ports"]]
    assert one(objects, "PodMonitor", component="worker")["spec"]["podMetricsEndpoints"][0]["port"] == "wd-metrics"
    node, its = one(objects, "DaemonSet", component="csi"), one(objects, "PodMonitor", component="csi")["spec"]
    assert its["selector"]["matchLabels"].items() <= node["spec"]["template"]["metadata"]["labels"].items()
    assert its["podMetricsEndpoints"][0]["port"] == node["spec"]["template"]["spec"]["containers"][0]["ports"][0]["name"]
    worker = one(objects, "DaemonSet", component="node-agent")["spec"]["template"]["spec"]["containers"][0]
    assert worker["ports"][0]["name"] == "wd-metrics"
    board = json.loads(one(objects, "ConfigMap", name="warpdrive-dashboard")["data"]["warpdrive.json"])
    assert board["panels"]


def test_network_policy_has_the_ports_of_the_pods():
    objects = render(EVERYTHING)
    allowed = {p["port"] for rule in one(objects, "NetworkPolicy")["spec"]["ingress"] for p in rule["ports"]}
    container = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert allowed == {p["containerPort"] for p in container["ports"]}
    alone = one(render({"networkPolicy": {"enabled": True}, **CERTIFICATES["secret"]}), "NetworkPolicy")
    assert alone["spec"]["egress"] == [], "with a given certificate there is nobody to ask"


@pytest.mark.parametrize("name", COMBINATIONS)
def test_names_fit_for_long_releases(name):
    values = COMBINATIONS[name]
    for o in render(values, release="a" * 53):
        assert len(o["metadata"]["name"]) <= 63
        assert all(len(str(v)) <= 63 for v in o["metadata"]["labels"].values())


def test_two_releases_do_not_meet():
    def cluster_wide(release, namespace):
        return {(o["kind"], o["metadata"]["name"]) for o in render({}, release=release, namespace=namespace) if "namespace" not in o["metadata"]}

    assert not cluster_wide("one", "a") & cluster_wide("two", "b")


@pytest.mark.parametrize(
    "values, said",
    [
        ({}, ["helm test warpdrive -n warpdrive", "kubectl create configmap", "kubectl label namespace"]),
        ({"injection": {"mode": "none"}}, ["warpdrive inject -f"]),
        ({"csi": {"enabled": True}}, ["stay Terminating"]),
        ({"agent": {"mountPoint": "/x"}}, ["nodeAgent.enabled is false"]),
        ({"nodeAgent": {"enabled": True}, "agent": {"mountPoint": "/x"}, "config": {"backends": [BACKEND]}}, ["hostPath: {path: /x}", "nodeAgent`; that is the name"]),
    ],
)
def test_notes_say_what_to_do_next(values, said):
    result = run_helm("install", "warpdrive", CHART, "-n", "warpdrive", "--dry-run=client", "-f", "-", text=yaml.safe_dump(values))
    assert result.returncode == 0, result.stderr
    notes = result.stdout.split("NOTES:", 1)[1]
    for part in said:
        assert part in notes
    assert "<no value>" not in result.stdout


def test_a_package_is_the_chart(tmp_path):
    """What is published renders the same: no file that is needed is left out of it."""
    packed = run_helm("package", CHART, "-d", tmp_path)
    assert packed.returncode == 0, packed.stderr
    archive = next(tmp_path.glob("*.tgz"))
    for values in (EVERYTHING, {"injection": {"mode": "policy"}}):
        arguments = ["template", "warpdrive", archive, "-n", "warpdrive", "--kube-version", VERSIONS[-1], "-f", "-"]
        found = run_helm(*arguments, text=yaml.safe_dump(values))
        assert found.returncode == 0, found.stderr
        assert found.stdout == rendering(values).stdout
    assert archive.stat().st_size < 200_000, "a release is stored in an object of the cluster, with all of it"


def test_no_budget_for_one_pod_and_no_surge_on_a_network_of_nodes():
    assert not [o for o in render({"webhook": {"replicas": 1}}) if o["kind"] == "PodDisruptionBudget"]

    def strategy(values):
        return one(render({"webhook": values}), "Deployment")["spec"]["strategy"]["rollingUpdate"]

    assert strategy({}) == strategy({"hostNetwork": True, "replicas": 1}) == {"maxUnavailable": 0, "maxSurge": 1}
    assert strategy({"hostNetwork": True}) == {"maxUnavailable": 1, "maxSurge": 0}


def test_names_of_objects_are_those_of_the_arguments():
    """The webhook is told of a Secret, a Service and a configuration: those that are there."""
    objects = render(EVERYTHING, release="prod", namespace="ops")
    command = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["command"]
    told = {flag: command[command.index(flag) + 1] for flag in ("--secret", "--service", "--namespace", "--webhook-configuration")}
    assert told == {
        "--secret": "ops/" + one(objects, "Secret")["metadata"]["name"],
        "--service": one(objects, "Service")["metadata"]["name"],
        "--namespace": "ops",
        "--webhook-configuration": one(objects, "MutatingWebhookConfiguration")["metadata"]["name"],
    }
    assert rendering(EVERYTHING, release="prod", namespace="ops").returncode == 0
