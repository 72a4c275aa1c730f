"""What the operating system gives and keeps: memory, processors, files, ports, signals."""
