"""Images from a source to its targets, and onto their live trees."""
