"""Side by side with the tools that people would take instead: one machine, one run, the same work."""
