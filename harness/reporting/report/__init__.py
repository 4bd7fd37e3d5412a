"""The HTML report and the LaTeX folder."""
