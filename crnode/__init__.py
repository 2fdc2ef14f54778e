"""crnode: continuous replication, versions and takeover for small businesses."""

__version__ = "0.1.0"
