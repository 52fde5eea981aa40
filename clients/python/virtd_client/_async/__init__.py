"""The async flavour, written by hand.  The sync one is generated from it."""
