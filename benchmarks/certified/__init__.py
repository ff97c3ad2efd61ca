"""Robust accuracy between two bounds, certified from below and attacked from above: python -m benchmarks certify."""
