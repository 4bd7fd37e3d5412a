"""Records of what was measured: files, shapes, origin."""
