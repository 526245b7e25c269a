"""One page on a training: its curves and the density of its latents, as a picture beside the weights."""

from pathlib import Path
from typing import Any

from saelab.artifacts import atomic


def draw(lines: list[dict[str, Any]], quality: dict[str, Any], path: Path) -> None:
    """Draw metrics.jsonl's lines and quality.json's numbers into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    steps = [line["step"] for line in lines]
    for axis, name, title in (
        (axes[0, 0], "fvu", "FVU of the batch"),
        (axes[0, 1], "l0", "L0"),
        (axes[1, 0], "silent", "silent latents"),
    ):
        axis.plot(steps, [line[name] for line in lines])
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    axes[0, 0].set_yscale("log")
    for plain in (axes[0, 0].yaxis.set_major_formatter, axes[0, 0].yaxis.set_minor_formatter):
        plain(FuncFormatter(lambda value, _: f"{value:.2g}"))
    for name, axis in (("l0", axes[0, 1]), ("silent", axes[1, 0])):
        axis.set_ylim(0, 1.1 * max(1.0, *(line[name] for line in lines)))
    edges, counts = quality["density"]["edges"], quality["density"]["counts"]
    axes[1, 1].stairs(counts, edges, fill=True)
    axes[1, 1].set(title="latents by log10 of the share of tokens that fire them", xlabel="log10 firing rate")
    shown = ("fvu", "l0", "dead", "rare", "dense")
    numbers = ", ".join(f"{n} {quality[n]:.4g}" for n in shown if quality[n] is not None)
    held = quality.get("held_out")
    unseen = (
        "" if held is None or held["fvu"] is None else f"; FVU on {held['tokens']} held-out tokens {held['fvu']:.4g}"
    )
    figure.suptitle(f"final pass over {quality['tokens']} tokens: {numbers}{unseen}")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
