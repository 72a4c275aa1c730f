"""The life of adapter versions: upload, publish, compose, quarantine, collect."""
