"""What the server tells its operator: Prometheus metrics and logs. A leaf: everyone may call it, it calls no one."""
