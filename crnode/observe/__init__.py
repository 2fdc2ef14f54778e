"""What the node tells people: the journal."""
