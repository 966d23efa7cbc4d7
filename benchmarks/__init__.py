"""Throughput, measured."""
