"""What touches the machine: files, clock, processes. Everything above takes these as arguments."""
