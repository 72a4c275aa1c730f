"""The manifests of a server over replicas on Ray: valid as rendered, closed to others, and settings that exist.

The schema of RayCluster is the KubeRay operator's. Its own fields are compared with those that the operator publishes
for ``ray.io/v1``; the pods, which are nearly all of it, with Kubernetes' schemas.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml

from loramux_server.services.access.exposure import check_listen, check_metrics_listen, may_be_open
from tools.pins import SERVER, pinned

from .deployments import DEPLOY, EXPOSED, ROOT, paths, settings
from .test_image import in_context, rest_of
from .test_kubernetes import VERSIONS

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which renders them, is not here")
FOLDER = DEPLOY / "kubernetes/ray"

Part = dict[str, Any]

# Of github.com/ray-project/kuberay, ray-operator/apis/ray/v1/raycluster_types.go.
SPEC = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy", "workerGroupSpecs",
}  # fmt: skip
HEAD = {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"}
WORKERS = {
    "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams",
    "replicas", "resources", "scaleStrategy", "suspend", "template",
}  # fmt: skip


@cache
def parts() -> list[Part]:
    done = subprocess.run(["kubectl", "kustomize", FOLDER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(kind: str) -> list[Part]:
    return [part for part in parts() if part["kind"] == kind]


def cluster() -> Part:
    (found,) = of_kind("RayCluster")
    return dict(found["spec"])


def templates() -> list[Part]:
    return [cluster()["headGroupSpec"]["template"], *(group["template"] for group in cluster()["workerGroupSpecs"])]


def container(template: Part) -> Part:
    (found,) = template["spec"]["containers"]
    return dict(found)


def variables() -> dict[str, str]:
    (found,) = of_kind("ConfigMap")
    return dict(found["data"])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_part_fits_the_schemas(version: str) -> None:
    for part in parts():
        if part["kind"] != "RayCluster":
            kubernetes_validate.validate(part, version, strict=True)
    for template in templates():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]}
        kubernetes_validate.validate(pod, version, strict=True)


def test_the_cluster_has_the_fields_of_its_kind() -> None:
    (found,) = of_kind("RayCluster")
    assert found["apiVersion"] == "ray.io/v1"
    assert cluster().keys() <= SPEC
    assert cluster()["headGroupSpec"].keys() <= HEAD
    for group in cluster()["workerGroupSpecs"]:
        assert group.keys() <= WORKERS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster()["headGroupSpec"], *cluster()["workerGroupSpecs"]):
        # KubeRay makes flags of them, so they are texts.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_ray_is_the_version_that_is_pinned() -> None:
    pins = pinned(ROOT / "requirements/ray.txt")
    assert pins["ray"][0] == cluster()["rayVersion"]
    assert not pins.keys() & pinned(SERVER).keys()
    assert in_context("requirements/ray.txt")
    steps = (DEPLOY / "ray.Dockerfile").read_text()
    assert "pip install --no-deps --require-hashes --requirement /build/ray.txt" in steps
    assert steps.rstrip().endswith(f"USER {rest_of('USER')[0]}")


def test_the_settings_exist_and_ask_for_as_many_replicas_as_there_are_workers() -> None:
    found = settings(variables())
    assert (found.backend, found.ray_address) == ("ray", "127.0.0.1:6379")
    (workers,) = cluster()["workerGroupSpecs"]
    assert found.replicas == workers["replicas"]
    assert container(workers["template"])["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert cluster()["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "no replica beside the server"


def test_there_is_tls_a_key_and_tokens() -> None:
    found = settings(variables())
    assert not found.insecure
    assert not may_be_open(found)
    check_listen(found, callers_known=True)
    check_metrics_listen(found)
    assert variables()["RAY_AUTH_MODE"] == "token"


def test_all_pods_have_the_same_settings_state_and_token() -> None:
    (config,) = of_kind("ConfigMap")
    state = rest_of("VOLUME")[0]
    for template in templates():
        (source,) = container(template)["envFrom"]
        assert source["configMapRef"]["name"] == config["metadata"]["name"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container(template)["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert set(mounts.values()) == volumes.keys()
        (claim,) = of_kind("PersistentVolumeClaim")
        assert volumes[mounts[state]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        assert mounts["/run/loramux/ray"] == "ray"
    head = {mount["mountPath"] for mount in container(templates()[0])["volumeMounts"]}
    for path in paths(variables()):
        assert str(path.parent) in head, path


def test_ray_s_ports_are_closed_to_others() -> None:
    policies = {part["metadata"]["name"]: part["spec"] for part in of_kind("NetworkPolicy")}
    closed = policies["loramux-ray"]
    for template in templates():
        assert closed["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (rule,) = closed["ingress"]
    assert rule["from"] == [{"podSelector": closed["podSelector"]}]
    doors = {port["name"] for port in container(templates()[0])["ports"]}
    assert {port["port"] for rule in policies["loramux"]["ingress"] for port in rule["ports"]} == doors
    assert [port["containerPort"] for port in container(templates()[0])["ports"]] == EXPOSED
    (service,) = of_kind("Service")
    assert service["spec"]["selector"].items() <= templates()[0]["metadata"]["labels"].items()
    assert not service["spec"]["selector"].items() <= templates()[1]["metadata"]["labels"].items()
    assert {port["targetPort"] for port in service["spec"]["ports"]} < doors


def test_pods_may_do_nothing() -> None:
    """The restricted standard of Kubernetes' pod security."""
    user, group = map(int, rest_of("USER")[0].split(":"))
    for template in templates():
        outer, inner = template["spec"]["securityContext"], container(template)["securityContext"]
        assert outer["runAsNonRoot"] is True
        assert (outer["runAsUser"], outer["runAsGroup"], outer["fsGroup"]) == (user, group, group)
        assert inner["capabilities"] == {"drop": ["ALL"]}
        assert (inner["allowPrivilegeEscalation"], inner["readOnlyRootFilesystem"]) == (False, True)
        assert template["spec"]["enableServiceLinks"] is False
