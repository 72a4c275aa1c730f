"""The compose files: valid, nothing is let in that should not be, and every file, secret and volume exists."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import check_jsonschema
import jsonschema
import pytest
import yaml
from pydantic import ByteSize, TypeAdapter

from loramux_server.core.errors import Error
from loramux_server.services.access.exposure import check_listen, check_metrics_listen, may_be_open

from .deployments import DEPLOY, EXPOSED, MARGIN, paths, settings
from .test_image import environment, rest_of

FILES = sorted(path.name for path in DEPLOY.glob("compose*.yaml"))
SCHEMA = Path(check_jsonschema.__file__).parent / "builtin_schemas/vendor/compose-spec.json"


class Loader(yaml.SafeLoader):
    """Knows Compose's tag for what replaces a list instead of adding to it, and refuses a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"twice in {node.start_mark}"
        return super().construct_mapping(node, deep)


Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def read(name: str) -> dict[str, Any]:
    return dict(yaml.load((DEPLOY / name).read_text(), Loader))


def services(*names: str) -> dict[str, dict[str, Any]]:
    """The services of several files, later ones on top; of lists, what each file adds."""
    merged: dict[str, dict[str, Any]] = {}
    for name in names:
        for service, given in read(name)["services"].items():
            known = merged.setdefault(service, {})
            for key, value in given.items():
                match known.get(key), value:
                    case dict() as before, dict():
                        known[key] = before | value
                    case list() as before, list() if key in ("volumes", "secrets"):
                        known[key] = before + value
                    case _:
                        known[key] = value
    return merged


def seconds(text: str) -> int:
    assert re.fullmatch(r"\d+s", text), text
    return int(text[:-1])


def names_of(secrets: list[Any]) -> list[tuple[str, str]]:
    """Each secret, and where it lies in the container."""
    long = [each if isinstance(each, dict) else {"source": each} for each in secrets]
    return [(each["source"], each.get("target", f"/run/secrets/{each['source']}")) for each in long]


def test_the_image_alone_lets_nobody_in() -> None:
    found = settings({})
    for check in (lambda: check_listen(found, callers_known=True), lambda: check_metrics_listen(found)):
        with pytest.raises(Error, match="--insecure"):
            check()


@pytest.mark.parametrize("name", FILES)
def test_a_file_fits_the_specification_of_compose(name: str) -> None:
    jsonschema.validate(read(name), json.loads(SCHEMA.read_text()))


def test_a_misspelt_word_does_not_fit_it() -> None:
    wrong = read("compose.yaml")
    wrong["services"]["loramux"]["readonly"] = True
    with pytest.raises(jsonschema.ValidationError, match="readonly"):
        jsonschema.validate(wrong, json.loads(SCHEMA.read_text()))


def test_alone_it_is_open_and_published_on_this_machine_only() -> None:
    (up,) = (name for name, service in services("compose.yaml").items() if "profiles" not in service)
    assert up == "loramux"
    assert may_be_open(settings(services("compose.yaml")[up]["environment"]))
    for service in services("compose.yaml").values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


@pytest.mark.parametrize("name", ["compose.yaml", "compose.network.yaml"])
def test_what_the_image_listens_on_is_published(name: str) -> None:
    assert [int(port.rpartition(":")[2]) for port in services(name)["loramux"]["ports"]] == EXPOSED


def test_on_a_network_there_is_tls_a_key_and_a_token() -> None:
    given = services("compose.yaml", "compose.network.yaml")["loramux"]["environment"]
    found = settings(given)
    assert not found.insecure
    assert not may_be_open(found)
    check_listen(found, callers_known="LORAMUX_BOOTSTRAP_KEY" in given)
    check_metrics_listen(found)


@pytest.mark.parametrize(
    "files", [("compose.yaml", *more) for n in range(len(FILES)) for more in combinations(FILES[:-1], n)]
)
def test_what_variables_and_mounts_name_is_there(files: tuple[str, ...]) -> None:
    """Certificates as a folder, because a single file that is mounted never changes."""
    found = services(*files)
    known = {kind: set().union(*(read(name).get(kind, {}) for name in files)) for kind in ("secrets", "volumes")}
    for service in found.values():
        secrets = names_of(service.get("secrets", []))
        assert {name for name, _ in secrets} <= known["secrets"]
        mounted = [place for _, place in secrets]
        for volume in service.get("volumes", []):
            source, place = volume.split(":")[:2]
            mounted.append(place)
            if source.startswith("./"):
                # Certificates and secrets are made; a folder of deploy/monitoring is part of the checkout.
                assert source.split("/")[1] in ("tls", "secrets") or (DEPLOY / source).exists(), source
            else:
                assert source in known["volumes"]
        for path in paths(service.get("environment", {})):
            assert any(path.is_relative_to(place) for place in (*mounted, "/tmp")), path


def test_a_state_in_a_network_of_its_own() -> None:
    storage = services("compose.storage.yaml")
    given = storage.pop("loramux")
    found = settings(given["environment"])
    database, blobs = (url and url.get_secret_value() for url in (found.database_url, found.blobs_url))
    assert database == "postgresql+psycopg://loramux@postgres/loramux", "its password has a file"
    assert blobs == "s3://loramux/blobs"
    assert f"mb --ignore-existing s3/{blobs.split('/')[2]}" in storage["bucket"]["entrypoint"][-1]
    assert read("compose.storage.yaml")["networks"]["storage"]["internal"] is True
    assert {name for name, service in storage.items() if service["networks"] != ["storage"]} == set()
    assert not any("ports" in service for service in storage.values())


@pytest.mark.parametrize("files", [("compose.yaml",), ("compose.yaml", "compose.storage.yaml")])
def test_every_service_is_locked_and_bounded(files: tuple[str, ...]) -> None:
    for name, service in services(*files).items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        if "build" not in service:
            assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", service["image"]), name
        # What runs once ends; the image of the server has a check of its own.
        assert name in ("loramux", "bucket") or "healthcheck" in service, name


def test_only_the_database_keeps_capabilities() -> None:
    kept = {name for name, service in services(*FILES).items() if "cap_add" in service}
    assert kept == {"postgres"}


def test_a_temporary_folder_runs_nothing_and_holds_what_is_written_there() -> None:
    (folder,) = services("compose.yaml")["loramux"]["tmpfs"]
    place, _, options = folder.partition(":")
    assert place == "/tmp"
    assert {"noexec", "nosuid", "nodev"} < set(options.split(","))
    (size,) = (option.removeprefix("size=") for option in options.split(",") if option.startswith("size="))
    assert TypeAdapter(ByteSize).validate_python(f"{size}ib") >= 128 << 20
    assert environment()["LORAMUX_STATE_DIR"] != place


def test_a_proxy_that_docker_gives_to_containers_is_never_between_services() -> None:
    """``proxies`` in Docker's configuration sets HTTP_PROXY in each container, and wget and S3 follow it."""
    found = services("compose.yaml", "compose.storage.yaml")
    for name, asked in (("loramux", "minio"), ("bucket", "minio"), ("grafana", "prometheus")):
        assert asked in found[name]["environment"]["NO_PROXY"].split(","), name
    for name, service in found.items():
        check = service.get("healthcheck", {}).get("test", [])
        if "wget" in check:
            assert check[2:4] == ["-Y", "off"], name


def test_a_stop_waits_for_what_runs() -> None:
    grace = seconds(services("compose.yaml")["loramux"]["stop_grace_period"])
    assert grace >= settings({}).drain_timeout + MARGIN


def test_prometheus_reads_the_token_that_the_server_asks_for() -> None:
    found = services("compose.yaml", "compose.network.yaml")
    (token,) = (place for name, place in names_of(found["prometheus"]["secrets"]) if name == "metrics-token")
    configured = yaml.safe_load((DEPLOY / "monitoring/prometheus.network.yml").read_text())
    (scrape,) = configured["scrape_configs"]
    assert scrape["authorization"]["credentials_file"] == token
    assert any(volume.split(":")[1] == scrape["tls_config"]["ca_file"] for volume in found["prometheus"]["volumes"])
    assert found["prometheus"]["group_add"] == [rest_of("USER")[0].partition(":")[2]]


def test_prometheus_has_the_rules_that_its_configuration_names() -> None:
    mounted = [volume.split(":")[1] for volume in services("compose.yaml")["prometheus"]["volumes"]]
    for name in ("prometheus.yml", "prometheus.network.yml"):
        for rules in yaml.safe_load((DEPLOY / "monitoring" / name).read_text())["rule_files"]:
            assert f"/etc/prometheus/{rules}" in mounted


def test_the_gpu_s_image_is_built_for_it() -> None:
    given = services("compose.gpu.yaml")["loramux"]
    assert (given["image"], given["build"]["args"]) == ("loramux:cuda", {"TORCH": "cuda"})


@pytest.mark.parametrize("name", ["compose.network.yaml", "compose.storage.yaml"])
def test_the_commands_of_a_file_leave_the_secrets_of_the_others_alone(name: str) -> None:
    """Both files' secrets are in one folder: a password file that the group reads is none to PostgreSQL's clients."""
    own = {Path(secret["file"]).name for secret in read(name)["secrets"].values()}
    folder, owned = "deploy/secrets/", set()
    commands = re.findall(r"\bch(?:mod|own) [\d:]+ ([^;\n]+)", (DEPLOY / name).read_text())
    for files in map(str.split, commands):
        owned |= {file.removeprefix(folder) for file in files if not file.startswith("deploy/tls/")}
    assert owned == own
