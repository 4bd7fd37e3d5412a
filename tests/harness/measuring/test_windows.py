"""Tiles and their windows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from harness.measuring.windows import batches


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    tile=st.integers(1, 45),
    halo=st.integers(0, 12),
    most=st.integers(0, 2000),
)
def test_every_position_is_in_one_tile_and_sees_as_far_as_the_image(
    height: int, width: int, tile: int, halo: int, most: int
) -> None:
    image = np.arange(height * width).reshape(height, width)
    seen = np.zeros_like(image)
    for batch in batches(height, width, tile, halo, most):
        sizes = {image[rows.window, columns.window].shape for rows, columns in batch}
        assert len(sizes) == 1
        (size,) = sizes
        assert len(batch) == 1 or len(batch) * size[0] * size[1] <= most
        for rows, columns in batch:
            seen[rows.tile(), columns.tile()] += 1
            window = image[rows.window, columns.window]
            part = image[rows.tile(), columns.tile()]
            assert np.array_equal(window[rows.inside(), columns.inside()], part)
            for cut, size_ in ((rows, height), (columns, width)):
                assert cut.start == max(0, cut.first - halo)
                assert cut.stop == min(size_, cut.last + halo)
                assert cut.tile(3) == slice(3 * cut.first, 3 * cut.last)
                assert cut.inside(3).start == 3 * cut.inside().start
    assert (seen == 1).all()
