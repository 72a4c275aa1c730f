"""The examples of balancers: what they name is there, both doors are behind them, and nothing cuts a stream short."""

from __future__ import annotations

import re
from typing import Any

import yaml

from .deployments import DEPLOY, EXPOSED

CONFIG = yaml.safe_load((DEPLOY / "balancers/envoy.yaml").read_text())["static_resources"]


def manager(listener: dict[str, Any]) -> dict[str, Any]:
    ((chain,), (network,)) = listener["filter_chains"], listener["filter_chains"][0]["filters"]
    assert chain["transport_socket"]["typed_config"]["@type"].endswith("DownstreamTlsContext")
    return dict(network["typed_config"])


def test_every_listener_has_a_route_to_a_cluster_that_is_there() -> None:
    clusters = {cluster["name"]: cluster for cluster in CONFIG["clusters"]}
    ports = {}
    for listener in CONFIG["listeners"]:
        found = manager(listener)
        ((host,),) = (found["route_config"]["virtual_hosts"],)
        (route,) = host["routes"]
        assert route["route"]["timeout"] == "0s"
        assert found["stream_idle_timeout"] == "0s"
        (filters,) = found["http_filters"]
        assert filters["name"] == "envoy.filters.http.router"
        ports[listener["address"]["socket_address"]["port_value"]] = clusters.pop(route["route"]["cluster"])
    assert not clusters
    assert sorted(ports) == sorted(EXPOSED[:2])
    for port, cluster in ports.items():
        (group,) = cluster["load_assignment"]["endpoints"]
        assert cluster["load_assignment"]["cluster_name"] == cluster["name"]
        behind = [each["endpoint"]["address"]["socket_address"] for each in group["lb_endpoints"]]
        assert {address["port_value"] for address in behind} == {port}


def test_servers_are_checked_by_their_certificates_and_their_health() -> None:
    for cluster in CONFIG["clusters"]:
        context = cluster["transport_socket"]["typed_config"]
        assert context["@type"].endswith("UpstreamTlsContext")
        validation = context["common_tls_context"]["validation_context"]
        assert validation["match_typed_subject_alt_names"][0]["matcher"]["exact"] == context["sni"]
        (check,) = cluster["health_checks"]
        assert check["interval"] == check["no_traffic_interval"] == "1s"


def test_requests_of_a_key_stay_with_a_server_that_has_time_and_is_ready() -> None:
    clusters = {cluster["name"]: cluster for cluster in CONFIG["clusters"]}
    for listener in CONFIG["listeners"]:
        ((host,),) = (manager(listener)["route_config"]["virtual_hosts"],)
        route = host["routes"][0]["route"]
        assert [each["header"]["header_name"] for each in route["hash_policy"]] == ["authorization", "x-api-key"]
        # Nothing that a server may have begun is sent once more.
        assert set(route["retry_policy"]["retry_on"].split(",")) == {"connect-failure", "refused-stream"}
        cluster = clusters[route["cluster"]]
        assert cluster["lb_policy"] == "RING_HASH"
        balance = cluster["common_lb_config"]
        assert balance["consistent_hashing_lb_config"]["hash_balance_factor"] > 100
        assert balance["healthy_panic_threshold"]["value"] == 0


def test_nginx_has_both_doors_of_the_same_servers() -> None:
    nginx = (DEPLOY / "balancers/nginx.conf").read_text()
    found = set(re.findall(r"^ +server ([\w-]+):(\d+) ", nginx, re.MULTILINE))
    names = {name for name, _ in found}
    assert len(names) == 2
    assert found == {(name, str(port)) for name in names for port in EXPOSED[:2]}
