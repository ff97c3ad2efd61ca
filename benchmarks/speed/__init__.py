"""How fast the loss and the attacks are, beside what they are measured against: python -m benchmarks speed."""
