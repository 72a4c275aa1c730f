"""Behaviour that never varies: strict JSON of one schema, and a rule about prices, over tenants never seen."""
