"""Prometheus' rules and configuration: promtool takes them, and every alert fires when it must and only then."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.monitoring import MONITORING, rules
from tests.unit.docs.markdown import ROOT

CASES = Path(__file__).parent / "alerts.test.yml"
FIRING = re.compile(r'ALERTS\{alertname="(\w+)", alertstate="firing"\}')

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (apt install prometheus)")


ALERTS = rules("alerts.yml")


def promtool(*words: str) -> str:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False, cwd=MONITORING)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_promtool_takes_the_files() -> None:
    promtool("check", "rules", "--lint-fatal", "recording.yml", "alerts.yml")
    # Their secrets lie on another machine.
    promtool("check", "config", "--syntax-only", "prometheus.yml", "prometheus.network.yml")


@needs_promtool
def test_alerts_fire_when_they_must_and_only_then() -> None:
    promtool("test", "rules", str(CASES))


def test_every_alert_has_a_time_at_which_it_fires_and_one_at_which_it_does_not() -> None:
    fires, quiet = set(), set()
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for asked in case["promql_expr_test"]:
            for name in FIRING.findall(asked["expr"]):
                (fires if asked["exp_samples"] else quiet).add(name)
    assert fires == quiet == {alert["alert"] for alert in ALERTS}


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    told = set(re.findall(r"^\| `(Loramux\w+)` \|", page, re.MULTILINE))
    assert told == {alert["alert"] for alert in ALERTS}
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert alert["annotations"].keys() == {"summary", "description"}


def test_both_configurations_have_the_same_rules_and_job() -> None:
    """The alerts and the dashboard expect the name of the job; compose mounts the files beside each other."""
    for name in ("prometheus.yml", "prometheus.network.yml"):
        config = yaml.safe_load((MONITORING / name).read_text())
        assert [job["job_name"] for job in config["scrape_configs"]] == ["loramux"]
        assert all((MONITORING / file).exists() for file in config["rule_files"])
