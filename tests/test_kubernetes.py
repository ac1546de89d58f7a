"""The Kubernetes manifests, held to the rules of a cluster: the restricted Pod Security Standard and who reaches whom.

tests/test_checkers.py validates them against Kubernetes' own schemas.
"""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from gateway import config, loading
from gateway.http1.server import CUT
from gateway.services import audit
from gateway.services.metrics_table import BY_NAME

MANIFESTS = Path(__file__).resolve().parent.parent / "docker" / "kubernetes"
Mapping = dict[str, Any]


def manifests() -> Iterator[Mapping]:
    for path in sorted(MANIFESTS.rglob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


def of_kind(*kinds: str) -> list[Mapping]:
    return [one for one in manifests() if one["kind"] in kinds]


def pod_of(app: str) -> Mapping:
    """The pod template of the workload with this `app` label."""
    template: Mapping = next(
        one["spec"]["template"]
        for one in of_kind("Deployment", "StatefulSet")
        if one["spec"]["template"]["metadata"]["labels"]["app"] == app
    )
    return template


# ---- the restricted Pod Security Standard (kubernetes.io/docs/concepts/security/pod-security-standards)

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
FORBIDDEN_IN_POD = {"hostNetwork", "hostPID", "hostIPC"}


def violations(pod: Mapping) -> list[str]:
    """What the restricted standard forbids or misses in a pod's spec."""
    found = [f"{name} is shared with the host" for name in sorted(FORBIDDEN_IN_POD & pod.keys())]
    found += [
        f"volume {volume['name']} is of a kind that is not allowed"
        for volume in pod.get("volumes", [])
        if not volume.keys() - {"name"} <= VOLUMES
    ]
    shared = pod.get("securityContext", {})
    if shared.get("sysctls"):
        found.append("sysctls are set")
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        context = shared | container.get("securityContext", {})
        found += [f"{container['name']}: {what}" for what in _in_container(container, context)]
    return found


def _in_container(container: Mapping, context: Mapping) -> Iterator[str]:
    rules: list[tuple[bool, str]] = [
        (context.get("runAsNonRoot") is True, "may run as root"),
        (context.get("runAsUser", 1) != 0, "runs as root"),
        (context.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"), "has no seccomp profile"),
        (context.get("allowPrivilegeEscalation") is False, "may gain privileges"),
        (not context.get("privileged"), "is privileged"),
        (context.get("capabilities", {}).get("drop") == ["ALL"], "keeps capabilities"),
        (set(context.get("capabilities", {}).get("add", [])) <= {"NET_BIND_SERVICE"}, "adds capabilities"),
        (context.get("procMount", "Default") == "Default", "sees all of /proc"),
        (not any(port.get("hostPort") for port in container.get("ports", [])), "takes a port of the host"),
    ]
    yield from (broken for holds, broken in rules if not holds)


def test_pods_meet_the_restricted_standard() -> None:
    """S-N2, P-E3. Beyond the standard: no service-account token, a read-only root, memory that ends somewhere."""
    templates = [one["spec"]["template"] for one in of_kind("Deployment", "StatefulSet", "Job")]
    assert {one["metadata"]["labels"]["app"] for one in templates} == {"fairgate", "engine", "download"}
    for template in templates:
        pod = template["spec"]
        assert violations(pod) == []
        assert pod["automountServiceAccountToken"] is False
        assert [one for one in pod["containers"] if one["securityContext"]["readOnlyRootFilesystem"] is not True] == []
    assert pod_of("fairgate")["spec"]["containers"][0]["resources"]["limits"]["memory"]
    labels = of_kind("Namespace")[0]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(
    ("harm", "seen"),
    [
        (lambda pod, _: pod.update(hostNetwork=True), "host"),
        (lambda pod, _: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "volume x"),
        (lambda pod, _: pod["securityContext"].pop("seccompProfile"), "seccomp"),
        (lambda pod, _: pod["securityContext"].pop("runAsNonRoot"), "root"),
        (lambda pod, _: pod["securityContext"].update(runAsUser=0), "runs as root"),
        (lambda _, one: one.pop("securityContext"), "capabilities"),
        (lambda _, one: one["securityContext"].update(privileged=True), "privileged"),
        (lambda _, one: one["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]), "adds"),
        (lambda _, one: one["ports"].append({"containerPort": 1, "hostPort": 1}), "port of the host"),
    ],
)
def test_the_standards_check_sees_each_harm(harm: Callable[[Mapping, Mapping], object], seen: str) -> None:
    pod = copy.deepcopy(pod_of("fairgate")["spec"])
    harm(pod, pod["containers"][0])
    assert seen in " ".join(violations(pod))


# ---- who reaches whom


class Peer(NamedTuple):
    """A pod, or something outside of the cluster (`namespace` empty): no selector matches that."""

    namespace: str
    labels: Mapping


HERE = "fairgate"
PEERS = {
    "gateway": Peer(HERE, {"app": "fairgate"}),
    "engine": Peer(HERE, {"app": "engine", "engine": "vllm"}),
    "download": Peer(HERE, {"app": "download"}),
    "stranger": Peer(HERE, {"app": "something"}),
    "ingress": Peer("ingress", {}),
    "prometheus": Peer("monitoring", {}),
    "names": Peer("kube-system", {"k8s-app": "kube-dns"}),
    "elsewhere": Peer("default", {"app": "fairgate"}),
    "internet": Peer("", {}),
}
PORTS = {8000, 8080, 9090, 53, 443, 22}


def selects(selector: Mapping, labels: Mapping) -> bool:
    assert selector.keys() <= {"matchLabels"}, "this check knows matchLabels only"
    return selector.get("matchLabels", {}).items() <= labels.items()


def matches(peer: Peer, rule: Mapping) -> bool:
    """Whether one entry of `from` or `to` means this peer; a pod selector alone means this namespace."""
    assert rule.keys() <= {"podSelector", "namespaceSelector"} or rule.keys() == {"ipBlock"}, "this check knows no more"
    if not peer.namespace or "ipBlock" in rule:
        return not peer.namespace and "ipBlock" in rule
    name = {"kubernetes.io/metadata.name": peer.namespace}
    there = selects(rule["namespaceSelector"], name) if "namespaceSelector" in rule else peer.namespace == HERE
    return there and selects(rule.get("podSelector", {}), peer.labels)


def named_ports(peer: Peer) -> dict[str, int]:
    """The ports that a pod of the manifests gives names to."""
    app = peer.labels.get("app")
    if peer.namespace != HERE or app not in ("fairgate", "engine"):
        return {}
    return {port["name"]: port["containerPort"] for port in pod_of(app)["spec"]["containers"][0]["ports"]}


def passes(direction: str, one: Peer, other: Peer, port: int, target: Peer) -> bool:
    """Whether the policies of `one` let it talk with `other`: none means open; other namespaces are not ours."""
    if one.namespace != HERE:
        return True
    kind, side = ("Ingress", "from") if direction == "ingress" else ("Egress", "to")
    policies = [
        policy["spec"]
        for policy in of_kind("NetworkPolicy")
        if kind in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], one.labels)
    ]
    rules = [rule for policy in policies for rule in policy.get(direction, [])]
    names = named_ports(target)
    return not policies or any(
        any(matches(other, entry) for entry in rule[side])
        and port in [names.get(str(one["port"]), one["port"]) for one in rule["ports"]]
        for rule in rules
    )


def reachable() -> set[tuple[str, str, int]]:
    """Every (from, to, port) that the policies let pass, of all pairs and ports."""
    return {
        (name, other, port)
        for name, source in PEERS.items()
        for other, target in PEERS.items()
        for port in PORTS
        if HERE in (source.namespace, target.namespace)
        and name != other
        and passes("egress", source, target, port, target)
        and passes("ingress", target, source, port, target)
    }


def test_network_is_denied_by_default_and_engines_are_the_gateways_alone() -> None:
    """N-1, S-N2: of all pairs and ports, exactly these connections pass."""
    assert reachable() == {
        ("ingress", "gateway", 8080),
        ("prometheus", "gateway", 9090),
        ("gateway", "engine", 8000),
        ("gateway", "names", 53),
        ("download", "internet", 443),
        ("download", "names", 53),
    }
    download = next(one for one in of_kind("NetworkPolicy") if one["metadata"]["name"] == "download")
    (out,) = download["spec"]["egress"][0]["to"]
    inside = {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"}
    assert inside <= set(out["ipBlock"]["except"])
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in [
        one["spec"] for one in of_kind("NetworkPolicy")
    ]


# ---- the rest


def test_services_are_internal_and_the_admin_listener_is_apart() -> None:
    services = of_kind("Service")
    assert {service["spec"]["type"] for service in services} == {"ClusterIP"}
    api = next(one for one in services if one["metadata"]["name"] == "fairgate")
    assert [port["targetPort"] for port in api["spec"]["ports"]] == ["api"]
    for service in services:
        template = pod_of(service["spec"]["selector"]["app"])
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        names = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_a_rolling_update_waits_for_the_drain() -> None:
    """H13: the pod leaves the endpoints first, then drains, and is not killed before it has."""
    gateway = of_kind("StatefulSet")[0]["spec"]
    assert gateway["updateStrategy"] == {"type": "RollingUpdate"}
    pod = gateway["template"]["spec"]
    container = pod["containers"][0]
    pause = int(re.findall(r"sleep\((\d+)\)", str(container["lifecycle"]["preStop"]))[0])
    assert pod["terminationGracePeriodSeconds"] > pause + config.Timeouts().drain + 2 * CUT + audit.CLOSE_SECONDS
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "admin"}
    budget = of_kind("PodDisruptionBudget")[0]["spec"]
    assert budget["maxUnavailable"] == 0
    assert budget["selector"]["matchLabels"].items() <= gateway["template"]["metadata"]["labels"].items()


def test_the_sample_scales_what_exists_on_a_metric_that_exists() -> None:
    scaler = of_kind("ScaledObject")[0]["spec"]
    assert scaler["scaleTargetRef"]["name"] in [one["metadata"]["name"] for one in of_kind("Deployment")]
    assert scaler["minReplicaCount"] >= 1
    for trigger in scaler["triggers"]:
        names = set(re.findall(r"fairgate_\w+", trigger["metadata"]["query"]))
        assert names
        assert names <= set(BY_NAME)


def test_the_sample_job_downloads_to_where_the_engine_looks() -> None:
    (job,) = of_kind("Job")
    pod = job["spec"]["template"]["spec"]
    download, engine = pod["containers"][0], pod_of("engine")["spec"]["containers"][0]
    assert download["command"][-1] == engine["args"][engine["args"].index("--model") + 1]
    assert download["image"] == engine["image"]
    assert pod["securityContext"]["fsGroup"] == pod_of("engine")["spec"]["securityContext"]["fsGroup"]


def test_what_pods_mount_and_are_configured_with_exists(tmp_path: Path) -> None:
    assert {one["metadata"].get("namespace", HERE) for one in manifests()} == {HERE}
    maps = {one["metadata"]["name"] for one in of_kind("ConfigMap")}
    for template in (pod_of("fairgate"), pod_of("engine")):
        pod = template["spec"]
        claims = [one["metadata"]["name"] for one in of_kind("StatefulSet")[0]["spec"]["volumeClaimTemplates"]]
        volumes = {one["name"] for one in pod["volumes"]} | set(claims)
        assert {one["name"] for one in pod["containers"][0]["volumeMounts"]} <= volumes
        assert {one["configMap"]["name"] for one in pod["volumes"] if "configMap" in one} <= maps
        claimed = [one["persistentVolumeClaim"] for one in pod["volumes"] if "persistentVolumeClaim" in one]
        made = {one["metadata"]["name"] for one in of_kind("PersistentVolumeClaim")}
        assert {one["claimName"] for one in claimed} <= made
    key = tmp_path / "key"
    key.write_text("f00d" * 8, encoding="utf-8")
    text = of_kind("ConfigMap")[0]["data"]["fairgate.yaml"]
    assert loading.parse(text.replace("/run/secrets/engines/vllm_key", str(key))).backends
