"""The kustomization for Kubernetes: valid as rendered, and what names something names something that is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from loramux_server.http.routes import OPEN
from loramux_server.services.access.exposure import check_listen, check_metrics_listen, may_be_open
from tests.unit import cli_lines

from .deployments import DEPLOY, EXPOSED, MARGIN, paths, settings
from .test_image import rest_of

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which renders them, is not here")
BASE = DEPLOY / "kubernetes"
OVERLAYS = sorted(path.name for path in (BASE / "overlays").iterdir())
VERSIONS = ("1.35", "1.37")
"""Of Kubernetes, whose schemas everything must fit."""
CUSTOM = {"Certificate", "PodMonitor"}
"""Kinds that operators add; their schemas are elsewhere."""

Part = dict[str, Any]


@cache
def rendered(folder: Path) -> list[Part]:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def with_components(folder: Path) -> Path:
    """An overlay of the base and all components, as an operator may write one in ``folder``."""

    def listed(*kinds: str) -> list[str]:
        return [os.path.relpath(path, folder) for kind in kinds for path in sorted((BASE / kind).iterdir())]

    content = {"namespace": "loramux", "resources": [os.path.relpath(BASE / "overlays/gpu", folder)]}
    others = [path for path in listed("components") if not path.endswith("cert-manager")]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({**content, "components": others}))
    return folder


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_components(tmp_path_factory.mktemp("overlay"))


@pytest.fixture(params=[*OVERLAYS, "everything"])
def parts(request: pytest.FixtureRequest, everything: Path) -> list[Part]:
    return rendered(everything if request.param == "everything" else BASE / "overlays" / request.param)


def of_kind(parts: list[Part], kind: str) -> list[Part]:
    return [part for part in parts if part["kind"] == kind]


def named(parts: list[Part], kind: str, name: str = "loramux") -> Part:
    (found,) = [part for part in of_kind(parts, kind) if part["metadata"]["name"] == name]
    return found


def pod(parts: list[Part]) -> Part:
    (workload,) = of_kind(parts, "StatefulSet")
    return dict(workload["spec"]["template"]["spec"])


def container(parts: list[Part]) -> Part:
    (found,) = pod(parts)["containers"]
    return dict(found)


def given(parts: list[Part]) -> dict[str, str]:
    """Variables of the container, all from its ConfigMap."""
    (source,) = container(parts)["envFrom"]
    assert "env" not in container(parts)
    return dict(named(parts, "ConfigMap", source["configMapRef"]["name"])["data"])


def ports(parts: list[Part]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(parts)["ports"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_part_fits_the_schemas(parts: list[Part], version: str) -> None:
    assert len(parts) > 6
    for part in parts:
        if part["kind"] not in CUSTOM:
            kubernetes_validate.validate(part, version, strict=True)


def test_a_misspelt_word_does_not_fit_them() -> None:
    wrong = yaml.safe_load(yaml.safe_dump(of_kind(rendered(BASE / "overlays/cpu"), "StatefulSet")[0]))
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_there_is_tls_a_key_and_a_token(parts: list[Part]) -> None:
    found = settings(given(parts))
    assert not found.insecure
    assert not may_be_open(found)
    check_listen(found, callers_known="LORAMUX_BOOTSTRAP_KEY" in given(parts))
    check_metrics_listen(found)


def test_the_command_is_understood_and_leaves_the_image_s_entry_point(parts: list[Part]) -> None:
    cli_lines.parse(container(parts)["args"])
    assert "command" not in container(parts)


def test_files_that_are_named_are_mounted_from_keys_that_the_secrets_have(parts: list[Part]) -> None:
    """Folders, because a single file that is mounted never changes."""
    mounts = {mount["mountPath"]: mount for mount in container(parts)["volumeMounts"]}
    volumes = {volume["name"] for volume in pod(parts)["volumes"]}
    (workload,) = of_kind(parts, "StatefulSet")
    volumes |= {claim["metadata"]["name"] for claim in workload["spec"]["volumeClaimTemplates"]}
    assert {mount["name"] for mount in mounts.values()} == volumes
    assert not any("subPath" in mount for mount in mounts.values())
    assert rest_of("VOLUME")[0] in mounts
    example = yaml.safe_load((BASE / "base/secret.example.yaml").read_text())
    for path in paths(given(parts)):
        assert str(path.parent) in mounts, path
        if mounts[str(path.parent)]["name"] == "secrets":
            assert path.name in example["stringData"]


def test_the_example_of_a_secret_is_valid_and_its_values_are_not(tmp_path: Path) -> None:
    """Whoever applies it as it is gets a server that refuses to start, not one with a key that is printed here."""
    from loramux_server.core.errors import Error
    from loramux_server.services.access.key_file import read_key

    example = yaml.safe_load((BASE / "base/secret.example.yaml").read_text())
    kubernetes_validate.validate(example, VERSIONS[-1], strict=True)
    (tmp_path / "key").write_text(example["stringData"]["bootstrap-key"])
    with pytest.raises(Error, match="--bootstrap-key"):
        read_key(tmp_path / "key")
    assert "secret" not in (BASE / "base/kustomization.yaml").read_text()


def test_ports_are_those_of_the_image_and_named_the_same_everywhere(parts: list[Part]) -> None:
    names = ports(parts)
    assert list(names.values()) == EXPOSED
    for service in of_kind(parts, "Service"):
        for port in service["spec"]["ports"]:
            assert names[port["targetPort"]] == port["port"]
            assert port["name"] != "metrics", "metrics are scraped from pods, not through a service"
    policy = named(parts, "NetworkPolicy")
    let_in = [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
    assert sorted(let_in) == sorted(names)
    for monitor in of_kind(parts, "PodMonitor"):
        assert {end["port"] for end in monitor["spec"]["podMetricsEndpoints"]} == {"metrics"}


def test_whoever_has_the_label_of_a_client_reaches_the_doors(parts: list[Part]) -> None:
    """A rule for pods with the server's own labels, as kustomize can make of it, would let no client in."""
    clients = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"loramux-client": "true"}}}
    doors, _metrics = named(parts, "NetworkPolicy")["spec"]["ingress"]
    assert doors["from"] == [clients]
    assert [port["port"] for port in doors["ports"]] == ["grpc", "https"]


def test_probes_ask_for_what_the_http_door_answers_to_anybody(parts: list[Part]) -> None:
    found = container(parts)
    for probe, path in (("startup", "live"), ("liveness", "live"), ("readiness", "ready")):
        asked = found[f"{probe}Probe"]["httpGet"]
        assert asked == {"path": f"/health/{path}", "port": "https", "scheme": "HTTPS"}
        assert asked["path"] in OPEN.values()
        assert found[f"{probe}Probe"]["timeoutSeconds"] <= found[f"{probe}Probe"]["periodSeconds"]


def test_a_stop_waits_for_what_runs(parts: list[Part]) -> None:
    before = container(parts)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(parts)["terminationGracePeriodSeconds"] >= before + settings(given(parts)).drain_timeout + MARGIN


def test_a_pod_may_do_nothing(parts: list[Part]) -> None:
    """The restricted standard of Kubernetes' pod security."""
    outer, inner = pod(parts)["securityContext"], container(parts)["securityContext"]
    user, group = map(int, rest_of("USER")[0].split(":"))
    assert outer["runAsNonRoot"] is True
    assert (outer["runAsUser"], outer["runAsGroup"], outer["fsGroup"]) == (user, group, group)
    assert outer["seccompProfile"] == {"type": "RuntimeDefault"}
    assert inner == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(parts)["automountServiceAccountToken"] is False
    # LORAMUX_SERVICE_HOST and its kin would be settings that do not exist.
    assert pod(parts)["enableServiceLinks"] is False


def test_memory_is_bounded_and_reserved(parts: list[Part]) -> None:
    resources = container(parts)["resources"]
    assert resources["limits"]["memory"] == resources["requests"]["memory"]
    assert resources["limits"]["cpu"] == resources["requests"]["cpu"]


def test_only_the_overlay_for_a_gpu_asks_for_one() -> None:
    asked = {name: container(rendered(BASE / "overlays" / name))["resources"]["limits"] for name in OVERLAYS}
    assert {name for name, limits in asked.items() if "nvidia.com/gpu" in limits} == {"gpu"}
    assert container(rendered(BASE / "overlays/gpu"))["image"] == "loramux:cuda"


def test_a_drain_of_a_node_is_never_blocked(parts: list[Part]) -> None:
    budgets = of_kind(parts, "PodDisruptionBudget")
    assert budgets
    for budget in budgets:
        assert budget["spec"]["maxUnavailable"] >= 1
        assert "minAvailable" not in budget["spec"]


def test_every_selector_selects_the_pods_of_one_workload(parts: list[Part]) -> None:
    workloads = of_kind(parts, "StatefulSet") + of_kind(parts, "Deployment")
    selectors = [part["spec"]["selector"] for part in of_kind(parts, "Service")]
    for kind in ("StatefulSet", "Deployment", "PodDisruptionBudget", "PodMonitor"):
        selectors += [part["spec"]["selector"]["matchLabels"] for part in of_kind(parts, kind)]
    selectors += [part["spec"]["podSelector"]["matchLabels"] for part in of_kind(parts, "NetworkPolicy")]
    assert len(selectors) >= 5
    for selector in selectors:
        assert selector
        labels = [workload["spec"]["template"]["metadata"]["labels"] for workload in workloads]
        assert sum(selector.items() <= each.items() for each in labels) == 1
    servers = named(parts, "Service", named(parts, "StatefulSet")["spec"]["serviceName"])
    assert servers["spec"]["selector"] == named(parts, "StatefulSet")["spec"]["selector"]["matchLabels"]
    assert servers["spec"]["clusterIP"] == "None"


def test_the_certificate_has_the_names_that_are_asked_for(parts: list[Part]) -> None:
    (certificate,) = of_kind(parts, "Certificate")
    assert given(parts)["LORAMUX_SERVER_NAME"] in certificate["spec"]["dnsNames"]
    secrets = {volume["secret"]["secretName"] for volume in pod(parts)["volumes"] if "secret" in volume}
    assert certificate["spec"]["secretName"] in secrets
    for monitor in of_kind(parts, "PodMonitor"):
        for end in monitor["spec"]["podMetricsEndpoints"]:
            assert end["tlsConfig"]["serverName"] in certificate["spec"]["dnsNames"]
            assert end["tlsConfig"]["ca"]["secret"]["name"] == certificate["spec"]["secretName"]


def test_several_servers_share_their_state_and_are_reached_evenly(everything: Path) -> None:
    parts = rendered(everything)
    (workload,) = of_kind(parts, "StatefulSet")
    assert workload["spec"]["replicas"] > 1
    found = settings(given(parts))
    assert found.database_url is not None
    assert found.blobs_url is not None
    assert found.max_connection_age > 0
    policy = named(parts, "NetworkPolicy")
    assert 5432 in [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]]


def test_alone_a_server_is_one(parts: list[Part]) -> None:
    """A state directory has one server: more than one replica only where files and registry are elsewhere."""
    (workload,) = of_kind(parts, "StatefulSet")
    assert (workload["spec"]["replicas"] > 1) <= ("LORAMUX_DATABASE_URL" in given(parts))


def test_the_docs_name_overlays_and_components_that_exist() -> None:
    text = (DEPLOY.parent / "docs/deployment.md").read_text()
    named = set(re.findall(r"(?:overlays|components)/[\w-]+", text))
    assert len(named) >= 4
    assert {name for name in named if not (BASE / name).is_dir()} == set()
