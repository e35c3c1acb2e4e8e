"""Networks that need no prior, are exported, and run on the device."""
