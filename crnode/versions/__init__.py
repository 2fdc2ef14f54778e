"""Which images are kept, and what people do with them."""
