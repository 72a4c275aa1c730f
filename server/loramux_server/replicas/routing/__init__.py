"""Which replica a command goes to: what replicas report, the policy, and its place in Ray Serve."""
