"""What runs in the next step: sequences, KV pages, fairness, the plan. No torch."""
