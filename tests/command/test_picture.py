import numpy as np
from matplotlib.image import imread

from jax_bptt.command import picture
from jax_bptt.command.arguments import text_arguments

CHARACTERS, BITS = np.arange(1, 101) * 2e4, 3 + 2 / np.arange(1, 101)


def test_all_parts_are_drawn_side_by_side(tmp_path):
    held_out = ([1e6, 2e6], [3.4, 3.1])
    picture.draw(str(tmp_path / "adaptive.png"), CHARACTERS, BITS, held_out, {}, {"after": [1.0]}, [8] * len(BITS))
    picture.draw(str(tmp_path / "report.png"), CHARACTERS, BITS, held_out, {"unigram": 4.0}, {"after": [1.0, 2.0]})
    assert imread(tmp_path / "adaptive.png").shape[:2] == (630, 2400)
    image = imread(tmp_path / "report.png")
    assert image.shape[:2] == (630, 1650)
    for half in np.split(image[..., :3], 2, axis=1):
        assert half.min() < 0.5 < half.max()


def test_it_can_be_a_png(tmp_path):
    arguments, _ = text_arguments(["--out", str(tmp_path / "report.png")])
    assert arguments.out == str(tmp_path / "report.png")
