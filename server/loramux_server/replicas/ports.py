"""The port that Ray Serve opens for each replica, kept off networks where nothing of the cluster is."""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)

_BIND = "add_port_to_grpc_server"


def listen_on_node_address() -> None:
    """Have this process's replica listen on its node's address: loopback, where the cluster is this host alone.

    Called before Ray Serve opens the port. It has no setting for it, and binds all interfaces otherwise.
    """
    import ray
    from ray.serve._private import replica

    bind = getattr(replica, _BIND, None)
    if bind is None:
        log.warning("this version of Ray opens the ports of replicas in another way; close them by a firewall")
        return
    host = ray.util.get_node_ip_address()

    def bind_to_node(server: Any, address: str) -> int:
        port = address.rpartition(":")[2]
        return int(bind(server, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"))

    setattr(replica, _BIND, bind_to_node)
