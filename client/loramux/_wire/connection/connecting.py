"""Why a connection failed, in words that say what to do: gRPC's own name sockets, errno and functions of OpenSSL."""

from __future__ import annotations

from .proxy import proxy_of


def connection_failure(url: str, details: str) -> tuple[str, str] | None:
    """A message and its reason for an UNAVAILABLE call; None where it was no connection that failed.

    ``url`` is ``https://host:port`` for TLS and ``host:port`` for plain text; ``details`` are gRPC's words.
    """
    words = details.lower()
    proxy = proxy_of(url)
    if proxy and ("failed to connect" in words or "proxy" in words):
        host = url.rpartition("/")[2].rpartition(":")[0]
        told = f"no server answers at {url} through the proxy of the environment ({proxy}); to go round it, set"
        return f"{told} no_proxy={host}", "CONNECTION_FAILED"
    if "failed to connect" not in words:
        return None
    if "certificate_verify_failed" in words or "certificate signature failure" in words:
        return _distrust(url, words), "CERTIFICATE_NOT_TRUSTED"
    if "hostname verification" in words or "not in peer certificate" in words:
        told = f"the certificate of {url} is for other names; use one of them as address, or name it with"
        return f"{told} server_name=, --server-name or LORAMUX_SERVER_NAME", "CERTIFICATE_FOR_OTHER_NAME"
    if "wrong_version_number" in words:
        told = f"what answers at {url} does not speak TLS; if the network is trusted, use plain text:"
        return f"{told} http://{url.rpartition('/')[2]}", "NO_TLS"
    if "socket closed" in words or "connection reset" in words:
        return _hung_up(url), "CONNECTION_CLOSED"
    if "handshake failed" in words:
        return f"the TLS handshake with {url} failed; the log of the server may tell why", "TLS_FAILED"
    told = f"no server answers at {url or 'that address'}; start one with `loramux serve`, or give another"
    return f"{told} address with --address or LORAMUX_ADDRESS", "CONNECTION_FAILED"


def _distrust(url: str, words: str) -> str:
    if "expired" in words:
        return f"the certificate of {url} has expired; it must be renewed there, unless this machine's clock is wrong"
    if "not yet valid" in words:
        return f"the certificate of {url} is not valid yet; is this machine's clock right?"
    told = f"the certificate of {url} is not from a CA that this client trusts; name the file of the right CA with"
    return f"{told} ca_file=, --ca-file or LORAMUX_CA_FILE"


def _hung_up(url: str) -> str:
    if url.startswith("https://"):
        return (
            f"{url} ended the connection: it may ask for a certificate of the client (cert_file= and key_file=,"
            " --cert-file and --key-file), or not trust the one that was shown"
        )
    return f"{url} ended the connection: if it speaks TLS, write https://{url}"
