"""Rounds and runs as state machines: inputs and the time in, effects out; no I/O."""
