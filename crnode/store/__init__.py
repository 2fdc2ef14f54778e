"""What a node keeps: append-only packs with an index (bytes), one SQLite catalog a set (names), one writer
thread."""
