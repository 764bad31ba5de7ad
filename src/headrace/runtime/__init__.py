"""Moving, rebuilding and attending: what runs a program on a real machine."""
