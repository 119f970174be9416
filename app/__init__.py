"""central-logger: centralized log ingestion with per-client API keys."""

__version__ = "0.1.0"
