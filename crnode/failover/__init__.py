"""Who serves: the lease, the votes, and what follows from them."""
