"""Connections: TLS, peers, the listening socket, dialling, and the control socket of one machine."""
