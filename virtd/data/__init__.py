"""Files that go with the package: units for the service manager."""
