"""EDSR, its convolutions, weight files, and the files that authors published."""
