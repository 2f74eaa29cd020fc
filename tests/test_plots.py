import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.path import Path

from jax_bptt import plots
from jax_bptt.diagnostics import TruncationBias
from jax_bptt.engine.schedule import Grid

CHARACTERS, BITS = np.arange(1, 101) * 2e4, 3 + 2 / np.arange(1, 101)


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_training_curve_draws_bits_running_mean_held_out_and_baselines():
    figure = plots.training_curve(
        CHARACTERS, BITS, held_out=([1e6, 2e6], [3.5, 3.25]), baselines={"unigram": 4.5, "trigram": 2.5}
    )
    (ax,) = figure.axes
    raw, mean, measured, unigram, trigram = ax.lines
    np.testing.assert_allclose(raw.get_xydata(), np.stack([CHARACTERS / 1e6, BITS], axis=1))
    np.testing.assert_allclose(mean.get_ydata(), plots.running_mean(BITS))
    np.testing.assert_allclose(measured.get_xydata(), [[1.0, 3.5], [2.0, 3.25]])
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
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step $t$ of the chunk", r"‖$\partial L\,/\,\partial h_t$‖")
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


def test_accuracies_draws_a_line_for_each_gradient():
    (ax,) = plots.accuracies({"exact": [0.5, 0.9], "truncated": [0.25, 0.5]}).axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[50, 90], [25, 50]]
    assert [line.get_xdata().tolist() for line in ax.lines] == [[1, 2], [1, 2]]
    assert texts(ax) == ["exact: 90.0 %", "truncated: 50.0 %"]
    assert ax.get_ylim() == (0, 100)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "test images told right (%)")


def test_credit_matrix_draws_norms_and_the_windows_of_truncation():
    matrix = np.tril(0.5 ** np.subtract.outer(np.arange(6), np.arange(6.0)).clip(0))
    matrix[5, 0] = 1e-9
    (ax, bar) = plots.credit_matrix(matrix, k1=2, k2=3, decades=4).axes
    (image,) = ax.images
    shown = image.get_array()
    assert shown.mask[np.triu_indices(6, 1)].all()
    np.testing.assert_allclose(shown.filled(0)[:5], matrix[:5])
    assert shown[5, 0] == pytest.approx(1e-4)
    assert (image.norm.vmin, image.norm.vmax) == (pytest.approx(1e-4), 1.0)
    assert (ax.get_xlabel(), ax.get_ylabel(), bar.get_ylabel()) == (
        "state $t$",
        "loss $s$",
        r"‖$\partial \ell_s\,/\,\partial h_t$‖",
    )
    assert ax.get_ylim() == (6.5, 0.5)  # the first loss above
    corners = [patch.get_xy() for patch in ax.patches]
    assert len(corners) == 3
    assert [c[:, 1].min() for c in corners] == [0.5, 2.5, 4.5]  # losses 1 and 2, 3 and 4, 5 and 6
    assert [c[:, 0].min() for c in corners] == [0.5, 1.5, 3.5]  # states from h_max(0, e − k2) on
    assert [c[:, 0].max() for c in corners] == [2.5, 4.5, 6.5]
    assert not plots.credit_matrix(matrix).axes[0].patches
    last = plots.credit_matrix(matrix, k1=4, k2=4, losses="last").axes[0].patches
    assert [patch.get_xy()[:, 1].min() for patch in last] == [3.5]  # the second window has no loss at step 8


def test_the_frames_of_windows_enclose_what_truncation_leaves():
    for k1, k2, losses in [(1, 3, "newest"), (2, 5, "all"), (3, 3, "newest"), (3, 4, "last"), (3, 1, "all")]:
        patches = plots.credit_matrix(np.ones((7, 7)), k1=k1, k2=k2, losses=losses).axes[0].patches
        inside = np.zeros((7, 7), int)
        for patch in patches:
            cells = np.stack(np.meshgrid(np.arange(1, 8), np.arange(1, 8)), -1).reshape(-1, 2)
            inside += Path(patch.get_xy()).contains_points(cells).reshape(7, 7)
        reaches = Grid(7, k1, k2, losses).reaches(6)
        want = [[reaches[s, s - t] if t <= s else 0 for t in range(7)] for s in range(7)]
        np.testing.assert_array_equal(inside, want)


def test_lag_profile_draws_one_or_several_and_a_horizon():
    (ax,) = plots.lag_profile(np.asarray([1.0, 0.5, 0.0])).axes
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xydata(), [[0, 1], [1, 0.5], [2, np.nan]])
    assert ax.get_legend() is None
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "lag $k$ (steps)",
        r"mean of ‖$\partial \ell_s\,/\,\partial h_{s-k}$‖",
    )
    assert ax.get_yscale() == "log"
    (ax,) = plots.lag_profile({"elman": [1.0, 0.1], "lstm": [1.0, 0.9]}, k2=12).axes
    assert texts(ax) == ["elman", "lstm", "horizon of 12 steps"]
    assert ax.lines[2].get_xdata()[0] == 12


def test_truncation_bias_draws_errors_by_horizon_in_order():
    errors = {"A": np.asarray([0.1, 0.4]), "B": np.asarray([0.2, 0.0])}
    bias = TruncationBias([1, 1], [8, 2], [0.15, 0.3], [0.99, 0.9], [0.01, np.nan], errors, errors)
    (ax,) = plots.truncation_bias(bias, tolerance=0.1).axes
    a, b, everything = ax.lines[0], ax.lines[1], ax.containers[0].lines[0]
    np.testing.assert_array_equal(a.get_xydata(), [[2, 0.4], [8, 0.1]])
    np.testing.assert_array_equal(b.get_ydata(), [np.nan, 0.2])
    np.testing.assert_array_equal(everything.get_xydata(), [[2, 0.3], [8, 0.15]])
    (bars,) = ax.containers[0].lines[2]
    np.testing.assert_allclose([s[:, 1] for s in bars.get_segments()], [[0.3, 0.3], [0.13, 0.17]])
    assert sorted(texts(ax)) == ["A", "B", "all params", "tolerance 0.1"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("horizon $k_2$ (steps)", r"$‖\hat{g} - g‖ \;/\; ‖g‖$")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert len(plots.truncation_bias(bias, parameters=False).axes[0].containers) == 1
    assert texts(plots.truncation_bias(bias, parameters=False).axes[0]) == ["all params"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plots.credit_matrix(np.ones((3, 4))), r"matrix: found shape \(3, 4\), expected \[T, T\]"),
        (lambda: plots.credit_matrix(np.ones((3, 3)), k1=2), "k1, k2: found 2 and None, expected both"),
        (lambda: plots.credit_matrix(np.ones((3, 3)), k1=3, k2=2), "k2: found 2, expected at least k1 = 3"),
        (lambda: plots.lag_profile(np.ones((3, 3))), r"profiles: found shape \(3, 3\), expected \[K \+ 1\]"),
        (lambda: plots.truncation_bias([0.1, 0.2]), "bias: found .* of type list, expected a TruncationBias"),
    ],
)
def test_what_cannot_be_drawn(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
