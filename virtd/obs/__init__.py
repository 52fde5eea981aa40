"""What the daemon tells about itself: logs, metrics, traces, and its readiness to the service manager."""
