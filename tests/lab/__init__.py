"""The lab: real hosts to test against, each a machine of its own under QEMU's emulation."""
