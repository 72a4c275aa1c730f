"""The balancer before several servers on Kubernetes: the configuration of deploy/balancers, mounted where it says."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import yaml

from loramux_server.http.routes import OPEN

from .deployments import DEPLOY, EXPOSED, MARGIN, settings
from .test_image import rest_of
from .test_kubernetes import Part, container, given, named, of_kind, pod, rendered, with_components

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which renders them, is not here")
NAME = "loramux-balancer"
FILES = ("certificate.yaml", "envoy.yaml")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Part]:
    return rendered(with_components(tmp_path_factory.mktemp("overlay")))


@pytest.fixture(scope="module")
def template(parts: list[Part]) -> Part:
    return dict(named(parts, "Deployment", NAME)["spec"]["template"])


@pytest.fixture(scope="module")
def envoy(template: Part) -> Part:
    (found,) = template["spec"]["containers"]
    return dict(found)


def mounted(envoy: Part, template: Part) -> dict[str, Part]:
    """Volumes by the folders where the container has them."""
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    assert not any("subPath" in mount for mount in envoy["volumeMounts"])
    return {mount["mountPath"]: volumes[mount["name"]] for mount in envoy["volumeMounts"]}


def flag(envoy: Part, name: str) -> str:
    return str(envoy["args"][envoy["args"].index(name) + 1])


def filenames(value: Any) -> set[str]:
    """All files that a part of Envoy's configuration names."""
    if isinstance(value, list):
        return set().union(*map(filenames, value))
    if not isinstance(value, dict):
        return set()
    own = {str(found) for key, found in value.items() if key in ("filename", "path") and str(found).startswith("/etc")}
    return own.union(*map(filenames, value.values()))


def test_its_configuration_is_that_of_the_example(parts: list[Part], template: Part, envoy: Part) -> None:
    """As a ConfigMap whose name changes with it, so that a change of it starts the pods anew."""
    files = mounted(envoy, template)["/etc/envoy"]["configMap"]
    assert files["name"].startswith(f"{NAME}-")
    assert named(parts, "ConfigMap", files["name"])["data"] == {
        name: (DEPLOY / "balancers" / name).read_text() for name in FILES
    }
    assert flag(envoy, "--config-path") == "/etc/envoy/envoy.yaml"


def test_files_that_it_names_are_mounted(parts: list[Part], template: Part, envoy: Part) -> None:
    """The certificate is the servers' own: its name is the one that the balancer and clients ask for."""
    content = [yaml.safe_load((DEPLOY / "balancers" / name).read_text()) for name in FILES]
    found = filenames(content)
    secret = {f"/etc/envoy/tls/{key}" for key in ("tls.crt", "tls.key", "ca.crt")}
    assert found - {"/etc/envoy/tls"} == {"/etc/envoy/certificate.yaml", *secret}
    (certificate,) = of_kind(parts, "Certificate")
    assert mounted(envoy, template)["/etc/envoy/tls"]["secret"]["secretName"] == certificate["spec"]["secretName"]


def test_it_asks_the_headless_service_for_the_servers(parts: list[Part]) -> None:
    clusters = yaml.safe_load((DEPLOY / "balancers/envoy.yaml").read_text())["static_resources"]["clusters"]
    names = set()
    for cluster in clusters:
        assert cluster["type"] == "STRICT_DNS"  # every address of the name is a server
        ((endpoint,),) = (group["lb_endpoints"] for group in cluster["load_assignment"]["endpoints"])
        names.add(endpoint["endpoint"]["address"]["socket_address"]["address"])
    (name,) = names
    assert named(parts, "Service", name)["spec"]["clusterIP"] == "None"
    assert name == named(parts, "StatefulSet")["spec"]["serviceName"]


def test_clients_reach_it_by_the_name_and_ports_of_a_server(parts: list[Part], template: Part, envoy: Part) -> None:
    service = named(parts, "Service")["spec"]
    assert service["selector"].items() <= template["metadata"]["labels"].items()
    assert {port["name"]: port["containerPort"] for port in envoy["ports"]} == {
        port["targetPort"]: port["port"] for port in service["ports"]
    }
    assert [port["containerPort"] for port in envoy["ports"]] == EXPOSED[:2]


def test_it_is_reached_by_clients_and_reaches_servers_alone(parts: list[Part], template: Part) -> None:
    own, servers = (named(parts, "NetworkPolicy", name)["spec"] for name in (NAME, "loramux"))
    assert own["ingress"] == servers["ingress"][:1]
    (to_servers,) = [rule for rule in own["egress"] if "podSelector" in rule["to"][0]]
    assert to_servers["to"][0] == {"podSelector": servers["podSelector"]}
    assert to_servers["ports"] == servers["ingress"][0]["ports"]
    let_in = servers["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    assert let_in.items() <= template["metadata"]["labels"].items()


def test_probes_ask_whether_a_server_behind_it_is_ready(envoy: Part) -> None:
    asked = envoy["readinessProbe"]["httpGet"]
    assert asked == {"path": "/health/ready", "port": "https", "scheme": "HTTPS"}
    assert asked["path"] in OPEN.values()
    # Whatever the servers do, the balancer is not restarted for it.
    assert envoy["livenessProbe"]["tcpSocket"] == {"port": "grpc"}


def test_a_stop_lets_requests_end(parts: list[Part], template: Part, envoy: Part) -> None:
    script = envoy["lifecycle"]["preStop"]["exec"]["command"][-1]
    seconds = int(script.rpartition("sleep ")[2])
    assert seconds >= settings(given(parts)).drain_timeout + MARGIN
    assert template["spec"]["terminationGracePeriodSeconds"] >= seconds + MARGIN
    # Until the end it takes connections, each for one answer: nobody is refused whom a late endpoint led here.
    drains = int(flag(envoy, "--drain-time-s"))
    assert drains > seconds
    assert flag(envoy, "--drain-strategy") == "immediate"
    admin = yaml.safe_load(flag(envoy, "--config-yaml"))["admin"]["address"]["socket_address"]
    assert admin["address"] == "127.0.0.1"
    assert f"/dev/tcp/{admin['address']}/{admin['port_value']}" in script


def test_it_may_do_nothing(parts: list[Part], template: Part, envoy: Part) -> None:
    """As the servers' pods; what it runs is known by content."""
    user, group = map(int, rest_of("USER")[0].split(":"))
    outer = template["spec"]["securityContext"]
    assert outer["runAsNonRoot"] is True
    assert (outer["runAsUser"], outer["runAsGroup"], outer["fsGroup"]) == (user, group, group)
    assert outer["seccompProfile"] == pod(parts)["securityContext"]["seccompProfile"]
    assert envoy["securityContext"] == container(parts)["securityContext"]
    assert template["spec"]["automountServiceAccountToken"] is False
    assert "@sha256:" in envoy["image"]
    assert envoy["resources"]["limits"] == envoy["resources"]["requests"]
    assert flag(envoy, "--concurrency") == envoy["resources"]["limits"]["cpu"]
    assert "--disable-hot-restart" in envoy["args"]


def test_one_of_several_is_always_there(parts: list[Part]) -> None:
    deployment = named(parts, "Deployment", NAME)["spec"]
    assert deployment["replicas"] > named(parts, "PodDisruptionBudget", NAME)["spec"]["maxUnavailable"]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_overlays_name_it_beside_the_storage_that_servers_share() -> None:
    for overlay in sorted((DEPLOY / "kubernetes/overlays").iterdir()):
        text = (overlay / "kustomization.yaml").read_text()
        assert text.index("components/shared-storage") < text.index("components/balancer")
