"""Estimating, before one owns the device, how long a network takes on it: never measured, always with its band."""
