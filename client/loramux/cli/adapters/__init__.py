"""The commands of adapters: what is stored, what a name means, where a version comes from."""
