"""The sim executor in C: TTIR to C text, compiled once, cached, called without the GIL.  See README.md of adapters/sim."""
