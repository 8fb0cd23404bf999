"""What the API accepts of print options, the renderer takes."""

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.options import Position, PrintOptions
from worker.cells import print_spec
from worker.images.print_spec import PrintSpec
from worker.images.printing import render_print

_ANY: dict[str, st.SearchStrategy[Any]] = {
    "canvas": st.one_of(st.just("trim"), st.builds("{}x{}".format, st.integers(1, 90), st.integers(1, 90))),
    "dpi": st.integers(30, 2400),
    "position": st.sampled_from(get_args(Position)),
    "scale": st.one_of(st.sampled_from(["fit", "none"]), st.floats(0.005, 1)),
    "margin_px": st.integers(0, 60),
    "allow_upscale": st.booleans(),
    "alpha": st.sampled_from(["soft", "hard", "halftone"]),
    "threshold": st.floats(0, 1, exclude_min=True, exclude_max=True),
    "choke_px": st.none() | st.floats(0, 10),
    "halftone_lpi": st.floats(9, 110),
    "underbase": st.booleans(),
}


@given(st.fixed_dictionaries({}, optional=_ANY))
@settings(deadline=None, max_examples=150)
def test_every_accepted_combination_is_rendered(fields: dict[str, Any]) -> None:
    try:
        options = PrintOptions.model_validate(fields)
    except ValidationError:
        return
    cutout = np.zeros((12, 10, 4), np.uint8)
    cutout[3:9, 2:8] = (200, 10, 10, 255)
    if options.canvas == "4500x5400":
        assert print_spec(options).canvas == (4500, 5400)
        return
    result = render_print(cutout, print_spec(options))
    if options.canvas != "trim":
        assert f"{result.image.shape[1]}x{result.image.shape[0]}" == options.canvas
    assert (result.underbase is not None) == options.underbase


def test_both_sides_mean_the_same_by_default() -> None:
    assert print_spec(PrintOptions()) == PrintSpec()


def test_a_canvas_beyond_the_limits_is_refused() -> None:
    with pytest.raises(ValidationError, match="at most"):
        PrintOptions(canvas="12000x12000")
