import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from jax_bptt import plots

CHARACTERS, BITS = np.arange(1, 101) * 2e4, 3 + 2 / np.arange(1, 101)


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_training_curve_draws_bits_running_mean_held_out_and_baselines():
    figure = plots.training_curve(CHARACTERS, BITS, held_out=3.25, baselines={"unigram": 4.5, "trigram": 2.5})
    (ax,) = figure.axes
    raw, mean, point, unigram, trigram = ax.lines
    np.testing.assert_allclose(raw.get_xydata(), np.stack([CHARACTERS / 1e6, BITS], axis=1))
    np.testing.assert_allclose(mean.get_ydata(), plots.running_mean(BITS))
    np.testing.assert_allclose(point.get_xydata(), [[2.0, 3.25]])
    assert [line.get_ydata()[0] for line in (unigram, trigram)] == [4.5, 2.5]
    assert unigram.get_linestyle() != trigram.get_linestyle()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("characters read (millions)", "bits per character")
    assert ax.get_xlim() == (0, 2.0)
    assert ax.get_ylim()[0] == 0
    assert texts(ax)[1:] == ["held out: 3.25", "unigram: 4.50", "trigram: 2.50"]


def test_training_curve_of_nothing_yet():
    (ax,) = plots.training_curve([], []).axes
    assert len(ax.lines) == 2


def test_gradient_norms_draws_each_on_a_logarithmic_scale():
    norms = {"before": np.asarray([1.0, 0.0, 0.1]), "after": np.asarray([3.0, 2.0, 1.0])}
    (ax,) = plots.gradient_norms(norms).axes
    before, after = ax.lines
    np.testing.assert_array_equal(before.get_ydata(), [1, np.nan, 0.1])
    np.testing.assert_array_equal(after.get_xdata(), [1, 2, 3])
    assert to_hex(before.get_color()) != to_hex(after.get_color())
    assert ax.get_yscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step t of the chunk", "‖∂L/∂h_t‖")
    assert texts(ax) == ["before", "after"]


def test_functions_draw_on_given_axes():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plots.training_curve(CHARACTERS, BITS, ax=left) is figure
    assert plots.gradient_norms({"a": [1.0, 2.0]}, ax=right) is figure
    assert len(left.lines) == 2
    assert len(right.lines) == 1


@pytest.mark.parametrize("values", [[2.0], [1.0, 2, 3], list(range(200))])
def test_running_mean_equals_a_loop(values):
    width = max(1, round(0.02 * len(values)))
    want = [np.mean(values[max(0, i + 1 - width) : i + 1]) for i in range(len(values))]
    np.testing.assert_allclose(plots.running_mean(values), want)


def test_report_writes_both_pictures(tmp_path):
    plots.report(str(tmp_path / "report.png"), CHARACTERS, BITS, 3.1, {"unigram": 4.0}, {"after": [1.0, 2.0]})
    image = imread(tmp_path / "report.png")
    assert image.shape[:2] == (630, 1650)
    for half in np.split(image[..., :3], 2, axis=1):
        assert half.min() < 0.5 < half.max()
    assert "png" in plots.file_types()


def test_accuracies_draws_a_line_for_each_gradient():
    (ax,) = plots.accuracies({"exact": [0.5, 0.9], "truncated": [0.25, 0.5]}).axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[50, 90], [25, 50]]
    assert [line.get_xdata().tolist() for line in ax.lines] == [[1, 2], [1, 2]]
    assert texts(ax) == ["exact: 90.0 %", "truncated: 50.0 %"]
    assert ax.get_ylim() == (0, 100)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "test images told right (%)")


def test_speeds_draws_a_group_of_bars_for_each_task():
    speeds = {"elman": {"jax.grad": 0.5, "torch": 0.8}, "gru": {"jax.grad": 0.7}}
    (ax,) = plots.speeds(speeds).axes
    assert [bar.get_height() for bar in ax.patches] == [0.5, 0.7, 0.8]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    assert [round(centre) for centre in centres] == [0, 1, 0]
    assert len({to_hex(bar.get_facecolor()) for bar in ax.patches}) == 2
    assert [label.get_text() for label in ax.get_xticklabels()] == ["elman", "gru"]
    assert texts(ax) == ["ours", "jax.grad", "torch"]
    assert ax.get_ylim()[0] == 0
