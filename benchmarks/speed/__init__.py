"""Speed of the loss, the attacks and training, compared with references: python -m benchmarks speed."""
