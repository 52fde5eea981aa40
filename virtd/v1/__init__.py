"""Generated from proto/virtd/v1; never edited by hand."""
