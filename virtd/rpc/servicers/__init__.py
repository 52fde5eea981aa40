"""One servicer for each service: convert, call the service, convert."""
