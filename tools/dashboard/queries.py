"""Pieces of PromQL, by the dashboard's variables.

Grafana chooses ``$__rate_interval`` by the time between scrapes and the range shown.
"""

from __future__ import annotations

SERVER = 'instance=~"$instance"'
TENANT = f'{SERVER}, tenant=~"$tenant"'
STACK = f'{TENANT}, adapter=~"$adapter"'
COMPUTED = f'{STACK}, adapter!="_none"'
"""Calls that computed with a stack."""
VARIABLES = {
    "instance": "label_values(loramux_engine_up, instance)",
    "tenant": f"label_values(loramux_generated_tokens_total{{{SERVER}}}, tenant)",
    "adapter": f"label_values(loramux_generated_tokens_total{{{TENANT}}}, adapter)",
}
"""What may be chosen above the panels."""


def rate(metric: str, where: str = SERVER, by: str = "") -> str:
    """Per second, summed over everything but ``by``."""
    return f"sum{f' by ({by})' if by else ''} (rate(loramux_{metric}{{{where}}}[$__rate_interval]))"


def ratio(part: str, whole: str, by: str = "") -> str:
    return f"{rate(part, by=by)} / {rate(whole, by=by)}"


def per_hour(metric: str, by: str) -> str:
    return f"sum by ({by}) (increase(loramux_{metric}{{{SERVER}}}[1h]))"


def quantile(share: float, metric: str, where: str = SERVER, by: str = "") -> str:
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', where, f'le, {by}' if by else 'le')})"


def quantiles(metric: str) -> dict[str, str]:
    return {f"p{share * 100:g}": quantile(share, metric) for share in (0.5, 0.95, 0.99)}


def p95(metric: str, by: str, where: str = STACK) -> dict[str, str]:
    return {f"{{{{{by}}}}}": quantile(0.95, metric, where, by)}


def split(metric: str, by: str, where: str = SERVER) -> dict[str, str]:
    return {f"{{{{{by}}}}}": rate(metric, where, by)}
