"""Measuring: policies and rivals on the same work in one run, and the workloads of the suite."""
