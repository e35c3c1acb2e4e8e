"""What is derived once from a pair and kept: region masks and teacher images, their cache and their sources."""
