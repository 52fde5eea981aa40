"""virtd: one daemon, one gRPC guest-management API, several hypervisors."""

__version__ = "0.1.0"
