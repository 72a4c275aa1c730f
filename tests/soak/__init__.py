"""A server under random load of several tenants for minutes, and what must be true of it afterwards."""
