"""logsvc: a centralized logging and anomaly-detection service."""

__version__ = "0.1.0"
