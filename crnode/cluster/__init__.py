"""Who belongs to the cluster, what it protects, and how a machine proves that it is one of its nodes."""
