"""Robust accuracy between certified lower bounds and upper bounds from attacks: python -m benchmarks certify."""
