"""From a write on the source's disk to an image: watch, settle, scan, read."""
