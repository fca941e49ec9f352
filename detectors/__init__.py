"""detectors: pure computation that judges windows of counts. No I/O, no clock, no service code."""

__version__ = "0.1.0"
