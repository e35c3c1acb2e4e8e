"""The public infrared and visible datasets: how their folders are laid out, and telling which one a folder holds."""
