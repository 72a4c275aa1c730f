"""The compose files and Kubernetes' manifest, as far as they can be read: nothing is let in that should not be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from loramux_server import config
from loramux_server.core.errors import Error
from loramux_server.services.access.exposure import check_listen, check_metrics_listen, may_be_open
from tests.unit import cli_lines

from .test_image import environment, rest_of

DEPLOY = Path(__file__).parents[3] / "deploy"


class Loader(yaml.SafeLoader):
    """Knows Compose's tag for what replaces a list instead of adding to it."""


Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.load_all((DEPLOY / name).read_text(), Loader))


def service(name: str) -> dict[str, Any]:
    return dict(read(name)[0]["services"]["loramux"])


def container() -> dict[str, Any]:
    (workload,) = [part for part in read("kubernetes.yaml") if part["kind"] == "StatefulSet"]
    (found,) = workload["spec"]["template"]["spec"]["containers"]
    return dict(found)


def in_kubernetes() -> dict[str, str]:
    return {each["name"]: each["value"] for each in container()["env"]}


def on_a_network() -> dict[str, str]:
    return {**service("compose.yaml")["environment"], **service("compose.network.yaml")["environment"]}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LORAMUX_")]:
        monkeypatch.delenv(name)


def settings(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> config.Settings:
    """What a server in the image reads with these variables on top of the image's."""
    for name, value in {**environment(), **variables}.items():
        if name.startswith("LORAMUX_"):
            monkeypatch.setenv(name, value)
    loaded = config.load({})
    assert loaded.unknown_variables == ()
    return loaded.settings


def test_the_image_alone_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings({}, monkeypatch)
    for check in (lambda: check_listen(found, callers_known=True), lambda: check_metrics_listen(found)):
        with pytest.raises(Error, match="--insecure"):
            check()


def test_compose_alone_is_open_and_published_on_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings(service("compose.yaml")["environment"], monkeypatch)
    assert may_be_open(found)
    ports = service("compose.yaml")["ports"]
    assert [port.rpartition(":")[2] for port in ports] == rest_of("EXPOSE")[0].split()
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("variables", [on_a_network, in_kubernetes])
def test_on_a_network_there_is_tls_a_key_and_a_token(variables: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings(variables(), monkeypatch)
    assert not found.insecure
    assert not may_be_open(found)
    check_listen(found, callers_known="LORAMUX_BOOTSTRAP_KEY" in variables())
    check_metrics_listen(found)


def test_files_that_are_named_are_mounted() -> None:
    """Folders, because a single file that is mounted never changes."""
    compose, secrets = service("compose.network.yaml"), read("compose.network.yaml")[0]["secrets"]
    assert set(compose["secrets"]) == set(secrets)
    mounted = [volume.split(":")[1] for volume in compose["volumes"]] + [f"/run/secrets/{name}" for name in secrets]
    assert_mounted(on_a_network(), mounted)
    assert not any("subPath" in mount for mount in container()["volumeMounts"])
    assert_mounted(in_kubernetes(), [mount["mountPath"] for mount in container()["volumeMounts"]])


def assert_mounted(variables: dict[str, str], mounted: list[str]) -> None:
    paths = [Path(value) for value in variables.values() if value.startswith("/")]
    assert len(paths) == 5
    for path in paths:
        assert any(path.is_relative_to(folder) for folder in mounted), path


def test_what_the_image_listens_on_is_published() -> None:
    exposed = rest_of("EXPOSE")[0].split()
    assert [port.rpartition(":")[2] for port in service("compose.network.yaml")["ports"]] == exposed
    (found,) = [part for part in read("kubernetes.yaml") if part["kind"] == "Service"]
    assert [str(port["port"]) for port in found["spec"]["ports"]] == exposed
    assert [str(port["containerPort"]) for port in container()["ports"]] == exposed


def test_the_certificate_has_the_name_that_probes_expect() -> None:
    (certificate,) = [part for part in read("kubernetes.yaml") if part["kind"] == "Certificate"]
    assert in_kubernetes()["LORAMUX_SERVER_NAME"] in certificate["spec"]["dnsNames"]


def test_the_commands_are_understood() -> None:
    cli_lines.parse(container()["args"])
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        command = container()[probe]["exec"]["command"]
        assert command[0] == "loramux"
        assert ("--liveness" in command) == (probe != "readinessProbe")
        cli_lines.parse(command[1:])
