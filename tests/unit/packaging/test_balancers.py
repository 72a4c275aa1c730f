"""Envoy's example: what it names is there, both doors of the servers are behind it, and nothing cuts a stream short."""

from __future__ import annotations

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
        assert len(behind) == 2
        assert {address["port_value"] for address in behind} == {port}


def test_servers_are_checked_by_their_certificates_and_their_health() -> None:
    for cluster in CONFIG["clusters"]:
        context = cluster["transport_socket"]["typed_config"]
        assert context["@type"].endswith("UpstreamTlsContext")
        validation = context["common_tls_context"]["validation_context"]
        assert validation["match_typed_subject_alt_names"][0]["matcher"]["exact"] == context["sni"]
        assert cluster["health_checks"]


def test_the_two_examples_name_the_same_servers() -> None:
    nginx = (DEPLOY / "balancers/nginx.conf").read_text()
    for cluster in CONFIG["clusters"]:
        for each in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]:
            address = each["endpoint"]["address"]["socket_address"]
            assert f"server {address['address']}:{address['port_value']} " in nginx
