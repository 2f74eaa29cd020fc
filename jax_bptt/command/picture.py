"""The picture of a training run, which the command leaves behind."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from jax_bptt import plots


def draw(
    path: str,
    characters: Sequence[float],
    bits: Sequence[float],
    held_out: tuple[Sequence[float], Sequence[float]],
    baselines: Mapping[str, float],
    norms: Mapping[str, Sequence[float]],
    steps: Sequence[int] | None = None,
) -> None:
    """What was read, what was learnt, the horizons where they adapted, and ‖∂L/∂h_t‖ before and after, side by side.

    Args:
        path: the file that is written.
        characters, bits, held_out, baselines: as `plots.training_curve` has them.
        norms: as `plots.gradient_norms` has them.
        steps: as `plots.horizons` has them; None where they did not adapt.
    """
    adapts = steps is not None
    figure = Figure(figsize=(16 if adapts else 11, 4.2), layout="constrained")
    left, *between, right = figure.subplots(1, 3 if adapts else 2)
    plots.training_curve(characters, bits, held_out=held_out, baselines=baselines, ax=left)
    plots.gradient_norms(norms, ax=right)
    if adapts:
        plots.horizons(characters, steps, ax=between[0])
    figure.savefig(path, dpi=150)
