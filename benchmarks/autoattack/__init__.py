"""The worst case of art_hrloss beside AutoAttack's own code, on trained and on masked networks."""
