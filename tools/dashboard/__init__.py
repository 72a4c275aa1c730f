"""Grafana's dashboard from a list of panels: ``python -m tools.dashboard`` writes its file."""
