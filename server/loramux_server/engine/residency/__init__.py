"""Which adapters are resident on the device and in host memory, and how they get there."""
