"""Compatibility of ART's attacks and trainers with the HR loss, tested by running each of them."""
