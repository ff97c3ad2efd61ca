"""Comparison of the worst case of art_hrloss with AutoAttack's own code, with and without masked gradients."""
