"""How a client reaches a server: channel, proxy, certificates, trace; why a connection failed."""
