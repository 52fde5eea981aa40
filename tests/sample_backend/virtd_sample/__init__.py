"""A sample backend for virtd: its guests are sleeping processes."""
