"""Figures in the house style are written whole, and alike each time."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from harness.reporting.figures.style import COLUMN, house_style, new_figure, save_figure


def draw(stem: Path) -> list[bytes]:
    with house_style():
        figure = new_figure(height=2.0)
        figure.subplots().plot([0, 1], [1, 2], label="line")
    return [path.read_bytes() for path in save_figure(figure, stem)]


def test_png_and_pdf_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "a" / "x.y"), draw(tmp_path / "b" / "x.y")
    assert first == second
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"x.y.png", "x.y.pdf"}
    assert Image.open(tmp_path / "a" / "x.y.png").size == (round(200 * COLUMN), 400)
    assert b"/FontFile2" in first[1]  # embedded TrueType
