"""duskfuse: an infrared and a visible camera become one picture, in real time, on a small device."""

__version__ = "0.1.0"
