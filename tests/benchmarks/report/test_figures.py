"""Figures: values are read from the axes and compared with values computed by hand from the records."""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from PIL import Image
from testing import made_up
from testing.browser import Report

from benchmarks import grids, protocols
from benchmarks.config import AttackSpec, Grid, LossSpec, RunSpec
from benchmarks.record import Record, Sample
from benchmarks.report import export
from benchmarks.report.drawing import Picture, save, style
from benchmarks.report.image_figures import pixels
from benchmarks.report.results import Results
from benchmarks.report.selection import Selection

CE, HR = protocols.CE, protocols.HR
OKABE_ITO = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}
GREY = "#767676"
# The 97.5% quantile of Student's t with one degree of freedom, tan(0.475 pi). The standard error
# of two values is half their distance.
T_1 = math.tan(0.475 * math.pi)
NAMES = ["figure_1", "accuracy_vs_eps", "margins", "strip", "confusion", "reliability", "bounds", "learning_curves"]


def small(grid: Grid, *, epochs: int, seeds: tuple[int, ...] = (0, 1)) -> Grid:
    """Return a grid with fewer seeds and epochs, with a learning curve after every epoch if it has one."""
    recipes = tuple(
        (name, replace(recipe, epochs=epochs, curve_every=int(bool(recipe.curve_every))))
        for name, recipe in grid.recipes
    )
    return replace(grid, seeds=seeds, recipes=recipes)


MAKERS = {maker.__name__: maker for maker in export.PICTURES}


def drawn(results: Results, name: str) -> Picture:
    with style():
        picture = MAKERS[name](Selection(results, results.datasets[0]))
    assert picture is not None
    assert picture.name == f"{name}-{results.datasets[0]}"
    return picture


def all_drawn(results: Results) -> dict[str, Picture]:
    return {picture.name.rpartition("-")[0]: picture for picture in export.Report(results).pictures}


@pytest.fixture(scope="module")
def results(digits_report: Report) -> Results:
    return digits_report.results


@pytest.fixture(scope="module")
def pictures(results: Results) -> dict[str, Picture]:
    return all_drawn(results)


def hand_made(grid: Grid, record: Callable[[RunSpec, AttackSpec], Record]) -> Results:
    return Results(grid, {(run, a): record(run, a) for run in grid.runs() for a in grid.attacks}, {}, {})


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    drawn = {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}
    return {label: line for label, line in drawn.items() if not label.startswith("_")}  # not what the legend leaves out


def shadings(axes: Axes) -> list[tuple[list[float], list[float], list[float]]]:
    """Return x, lower ends and upper ends of each shaded interval."""
    found = []
    for collection in axes.collections:
        (path,) = collection.get_paths()
        by_x: dict[float, list[float]] = {}
        for x, y in path.vertices:
            by_x.setdefault(float(x), []).append(float(y))
        found.append((list(by_x), [min(ys) for ys in by_x.values()], [max(ys) for ys in by_x.values()]))
    return found


def check(axes: Axes, expected: Mapping[str, Mapping[float, list[float]]]) -> None:
    """Check that lines and shadings are the means and t intervals of pairs of values, by label and x."""
    drawn = lines(axes)
    assert list(drawn) == list(expected)
    for (label, values), (x, low, high) in zip(expected.items(), shadings(axes), strict=True):
        means = [(a + b) / 2 for a, b in values.values()]
        halves = [T_1 * abs(a - b) / 2 for a, b in values.values()]
        assert drawn[label][0] == list(values)
        assert drawn[label][1] == pytest.approx(means, abs=1e-12)
        assert x == list(values)
        assert low == pytest.approx([m - h for m, h in zip(means, halves, strict=True)], abs=1e-9)
        assert high == pytest.approx([m + h for m, h in zip(means, halves, strict=True)], abs=1e-9)


def curve(results: Results, loss: LossSpec, value: Callable[[Mapping[str, Any]], float]) -> dict[float, list[float]]:
    rows = zip(*(results.curves[run] for run in results.runs("digits", loss)), strict=True)
    return {row[0]["epoch"]: [value(one) for one in row] for row in rows}


def accuracies(results: Results, loss: LossSpec, attacks: Mapping[float, AttackSpec]) -> dict[float, list[float]]:
    records = results.records
    runs = results.runs("digits", loss)
    return {x: [records[run, a].accuracy for run in runs] for x, a in attacks.items()}


def test_a_grid_has_all_its_figures_with_the_numbers_of_images_and_seeds_in_their_captions(
    pictures: dict[str, Picture],
) -> None:
    assert list(pictures) == NAMES
    for picture in pictures.values():
        assert "digits" in picture.title
        assert "360 test images" in picture.caption or "180 validation images" in picture.caption
        assert "2 seeds" in picture.caption or "seed 0" in picture.caption
        assert len(picture.alt) > 100


def test_figure_1_draws_the_curves_attacks(results: Results, pictures: dict[str, Picture]) -> None:
    exact = {0: "none", 0.1: "fgm-ce-0.1", 0.25: "fgm-ce-0.25"}
    paper = {0: "none", 0.1: "fgm-clipped-ce-0.1-data", 0.25: "fgm-clipped-ce-0.25-data"}
    assert {*exact.values(), *paper.values()} == {attack.key() for attack in protocols.FIGURE_1_ATTACKS}
    axes = pictures["figure_1"].figure.axes
    assert [a.get_title() for a in axes] == ["Exact-gradient protocol", "Paper protocol"]
    for panel, keys in zip(axes, (exact, paper), strict=True):
        expected = {
            f"{loss} trained, eps {eps:g}": curve(results, loss, lambda row, key=key: row["attacks"][key])
            for loss in (CE, HR)
            for eps, key in keys.items()
        }
        check(panel, expected)


def test_learning_curves_draw_loss_and_validation_accuracy(results: Results, pictures: dict[str, Picture]) -> None:
    for panel, key in zip(pictures["learning_curves"].figure.axes, ("train_loss", "validation_accuracy"), strict=True):
        check(panel, {f"{loss} trained": curve(results, loss, lambda row, key=key: row[key]) for loss in (CE, HR)})


def test_accuracy_vs_eps_draws_the_records(results: Results, pictures: dict[str, Picture]) -> None:
    for panel, protocol in zip(
        pictures["accuracy_vs_eps"].figure.axes, (protocols.exact, protocols.paper), strict=True
    ):
        expected = {}
        for loss in (CE, HR):
            for name in ("ce", "hr"):
                attacks = {0: AttackSpec("none"), 0.1: protocol(name, 0.1), 0.25: protocol(name, 0.25)}
                expected[f"{loss} trained, {name.upper()} attack"] = accuracies(results, loss, attacks)
        check(panel, expected)


BOUNDS = {
    "P_e": "error",
    "CE / log 2": "log_markov_bound",
    "(1) at its best alpha": "log_tightest_upper_bound",
    "(1) at alpha 1.6": "log_upper_bound",
}


def bound_values(results: Results, loss: LossSpec, key: str) -> dict[str, dict[float, list[float]]]:
    """Return the expected lines of a network's bounds under an attack; a bound above 1 is drawn as 1."""
    values = {
        name: curve(results, loss, lambda row, field=field: row["bounds"][key][field]) for name, field in BOUNDS.items()
    }
    return {
        name: line if name == "P_e" else {x: [min(1.0, math.exp(v)) for v in pair] for x, pair in line.items()}
        for name, line in values.items()
    }


def test_bounds_have_a_panel_for_each_loss_unless_they_are_vacuous(
    results: Results, pictures: dict[str, Picture]
) -> None:
    keys = {"no attack": "none", "FGSM, eps 0.1": "fgm-ce-0.1", "FGSM, eps 0.25": "fgm-ce-0.25"}
    drawn = pictures["bounds"].figure.axes
    by_title = {panel.get_title(): panel for panel in drawn}
    for title, key in keys.items():
        values = {loss: bound_values(results, loss, key) for loss in (CE, HR)}
        means = [
            sum(v) / 2 for lines in values.values() for n, line in lines.items() if n != "P_e" for v in line.values()
        ]
        if key == "none" or min(means) <= 0.99:
            for loss, expected in values.items():
                panel = by_title.pop(f"{loss} trained, {title}")
                check(panel, expected)
                assert panel.get_ylim() == drawn[0].get_ylim()
                (level,) = (line for line in panel.get_lines() if str(line.get_label()).startswith("_"))
                assert set(level.get_ydata()) == {1.0}
    assert not by_title


def test_vacuous_bounds_are_named_and_not_drawn(results: Results) -> None:
    def vacuous(row: dict[str, Any]) -> dict[str, Any]:
        high = {field: 2.0 for field in BOUNDS.values() if field.startswith("log_")}
        return {**row, "bounds": {k: values | high if k != "none" else values for k, values in row["bounds"].items()}}

    changed = {run: [vacuous(row) for row in rows] for run, rows in results.curves.items()}
    picture = drawn(replace(results, curves=changed), "bounds")
    assert [axes.get_title() for axes in picture.figure.axes] == ["CE trained, no attack", "HR(1.6) trained, no attack"]
    assert "eps 0.1 and eps 0.25" in picture.caption


def test_eps_of_the_paper_protocol_has_the_units_of_the_networks_input() -> None:
    grid = small(grids.svhn(), epochs=1)
    made = hand_made(grid, lambda run, attack: made_up.made_record(10, 5 + run.seed))
    picture = drawn(made, "accuracy_vs_eps")
    assert [axes.get_xlabel() for axes in picture.figure.axes] == [
        "eps (share of the pixel range)",
        "eps (units of the network's input, 0 to 255)",
    ]


def test_alpha_figure_draws_both_splits_and_cross_entropy_as_a_horizontal_line() -> None:
    grid = small(grids.alpha_digits(), epochs=1)

    def correct(loss: LossSpec, seed: int, attack: AttackSpec) -> int:
        return round(100 * (loss.alpha or 9) + 1000 * attack.eps + 7 * seed + 3 * (attack.split == "test"))

    made = hand_made(grid, lambda run, a: made_up.made_record(2000, correct(run.loss, run.seed, a)))
    picture = drawn(made, "alpha")
    for panel, split in zip(picture.figure.axes, ("validation", "test"), strict=True):
        expected: dict[str, dict[float, list[float]]] = {}
        for loss in (CE, HR):
            for eps in (0, 0.1, 0.25):
                attack = protocols.exact("ce", eps, split)
                trained = {a: LossSpec("hr", a) for a in protocols.ALPHAS} if loss == HR else {1.0: CE, 4.0: CE}
                expected[f"{loss.name.upper()} trained, eps {eps:g}"] = {
                    x: [correct(of, seed, attack) / 2000 for seed in (0, 1)] for x, of in trained.items()
                }
        check(panel, expected)
    assert "Not drawn" not in picture.caption
    other = drawn(made, "accuracy_vs_eps")
    assert "8 other values of alpha" in other.caption
    assert "HR(1.6) trained" in other.alt


def test_strong_figure_draws_paper_exact_and_worst_case_on_the_same_images() -> None:
    grid = small(grids.strong_digits(), epochs=1)
    others = {"clipped-ce": 30, "ce": 20, None: 10}

    def correct(run: RunSpec, attack: AttackSpec) -> int:
        if attack.name in ("pgd", "apgd", "square", "transfer", "diagnostics") or attack.images != 360:
            return 1
        left = 90 if attack.name == "none" else others[attack.loss] + round(10 * attack.eps)
        return left + run.seed + 3 * (run.loss == HR)

    made = hand_made(grid, lambda run, attack: made_up.made_record(100, correct(run, attack)))
    picture = drawn(made, "strong")
    (panel,) = picture.figure.axes
    expected = {}
    for loss in (CE, HR):
        for name, attack_loss in (("FGSM, paper", "clipped-ce"), ("FGSM, exact", "ce"), ("worst case", None)):
            base = {0: 90, **{eps: others[attack_loss] + round(10 * eps) for eps in protocols.STRONG_EPS}}
            more = 3 * (loss == HR)
            expected[f"{loss} trained, {name}"] = {x: [(b + more) / 100, (b + more + 1) / 100] for x, b in base.items()}
    check(panel, expected)
    assert "the first 360 test images" in picture.caption


def test_tick_labels_that_would_overlap_are_rotated() -> None:
    far = small(grids.strong_cifar10(), epochs=1)
    more = dict.fromkeys((*far.attacks, *protocols.strong(0.1, 100, 50)))  # beside 0.004 and 0.008
    near = replace(far, attacks=tuple(more))
    for grid, turned in ((far, 0), (near, 60)):
        made = hand_made(grid, lambda run, attack: made_up.made_record(100, 50 + run.seed))
        (axes,) = drawn(made, "strong").figure.axes
        assert {label.get_rotation() for label in axes.get_xticklabels()} == {turned}


def test_confusion_figure_draws_the_matrix_of_ce_and_the_difference_of_hr(
    results: Results, pictures: dict[str, Picture]
) -> None:
    def matrices(loss: LossSpec, attack: AttackSpec) -> list[np.ndarray]:
        return [results.records[run, attack].confusion for run in results.runs("digits", loss)]

    ce, hr = (matrices(loss, protocols.exact("ce", 0.1)) for loss in (CE, HR))
    left, right = (axes for axes in pictures["confusion"].figure.axes if axes.get_images())
    for panel, expected in ((left, sum(ce) / 2), (right, (sum(hr) - sum(ce)) / 2)):
        np.testing.assert_allclose(panel.get_images()[0].get_array(), expected, rtol=0, atol=1e-15)
        assert (panel.get_xlabel(), panel.get_ylabel()) == ("true class y", "predicted class ŷ")
        assert panel.yaxis_inverted()  # row 0 on top
    low, high = right.get_images()[0].get_clim()
    most = max(np.abs(sum(hr) - sum(ce)).max() / 2, 0.01)  # otherwise rounding would look like a difference
    assert -low == high == pytest.approx(most), "no difference is the middle of the scale"
    for loss in (CE, HR):
        for name, protocol in (("exact", protocols.exact), ("paper", protocols.paper)):
            a, b = (np.linalg.norm(np.eye(10) - matrix) for matrix in matrices(loss, protocol("ce", 0.1)))
            norm = f"{loss} trained, {name} protocol: {(a + b) / 2:.3f} ± {T_1 * abs(a - b) / 2:.3f}"
            assert norm in pictures["confusion"].caption


def test_confusion_leaves_out_a_class_without_images() -> None:
    grid = replace(small(grids.digits(), epochs=1, seeds=(0,)), attacks=(protocols.exact("ce", 0.1),))
    right = {CE: 0.5, HR: 0.75}

    def record(run: RunSpec, attack: AttackSpec) -> Record:
        return made_up.made_record(4, 3, confusion=np.array([[right[run.loss], np.nan], [1 - right[run.loss], np.nan]]))

    picture = drawn(hand_made(grid, record), "confusion")
    assert f"CE trained, exact protocol: {math.sqrt(0.5):.3f};" in picture.caption
    images = [axes.get_images()[0] for axes in picture.figure.axes if axes.get_images()]
    for image, column in zip(images, ([0.5, 0.5], [0.25, -0.25]), strict=True):
        values = np.ma.filled(image.get_array(), np.nan)
        np.testing.assert_array_equal(values, [[column[0], np.nan], [column[1], np.nan]])


def test_margin_histograms_are_the_counts_of_all_seeds_as_shares(
    results: Results, pictures: dict[str, Picture]
) -> None:
    attacks = (AttackSpec("none"), protocols.exact("ce", 0.1), protocols.exact("ce", 0.25))
    for panel, attack in zip(pictures["margins"].figure.axes, attacks, strict=True):
        steps = {str(patch.get_label()): patch.get_data() for patch in panel.patches}
        for loss in (CE, HR):
            counts = [results.records[run, attack].histogram for run in results.runs("digits", loss)]
            expected = [(a + b) / (2 * 360) for a, b in zip(*counts, strict=True)]
            values, edges, _ = steps[f"{loss} trained"]
            np.testing.assert_allclose(values, expected, atol=1e-15)
            assert values.sum() == pytest.approx(1)
            assert list(edges) == list(range(-40, 41))
            negative = sum(expected[:40])
            name = f"CE attack, eps {attack.eps:g}" if attack.eps else "no attack"
            assert f"{loss} trained, {name}: {negative:.1%} of margins are below 0" in pictures["margins"].alt
        marks = [line.get_xdata()[0] for line in panel.get_lines()]
        assert marks == [0, pytest.approx(16.118, abs=1e-3)]


def test_strip_shows_the_pixels_of_the_records_and_marks_misclassified_images(
    results: Results, pictures: dict[str, Picture]
) -> None:
    attacks = (AttackSpec("none"), protocols.exact("ce", 0.1), protocols.exact("ce", 0.25))
    samples = [
        sample
        for loss in (CE, HR)
        for attack in attacks
        for sample in results.records[results.runs("digits", loss)[0], attack].shown()
    ]
    assert len(samples) == 24
    right = 0
    (axes,) = pictures["strip"].figure.axes
    texts = [text.get_text() for text in axes.texts if "→" in text.get_text()]
    for image, frame, text, sample in zip(axes.images, axes.patches, texts, samples, strict=True):
        np.testing.assert_array_equal(np.asarray(image.get_array()).ravel(), sample.pixels.ravel())
        words = f"{sample.label} → {sample.prediction}\n{sample.confidence:.0%}"
        wrong = sample.label != sample.prediction
        right += not wrong
        assert text == ("✗ " if wrong else "") + words
        assert (frame.get_linestyle() == "solid") == (not wrong)
        left, right_edge, bottom, top = image.get_extent()
        assert frame.get_bbox().extents == pytest.approx([left, bottom, right_edge, top])
    assert 0 < right < 24


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_drawn_channels_last(channels: int) -> None:
    image = np.arange(8 * channels, dtype=np.uint8).reshape(2, 4, channels)
    np.testing.assert_array_equal(pixels(Sample(image.transpose(2, 0, 1), 0, 0, 1.0)), image.squeeze())


def test_lines_differ_in_colour_and_in_style(pictures: dict[str, Picture]) -> None:
    for name in ("figure_1", "learning_curves", "accuracy_vs_eps"):
        for axes in pictures[name].figure.axes:
            looks = [
                (line.get_linestyle(), line.get_marker(), line.get_markerfacecolor() == "none")
                for line in axes.get_lines()
            ]
            assert len(set(looks)) == len(looks)
            assert {to_hex(line.get_color()) for line in axes.get_lines()} <= OKABE_ITO
    for axes in pictures["margins"].figure.axes:
        outlines = [patch for patch in axes.patches if not patch.get_fill()]
        assert len({patch.get_linestyle() for patch in outlines}) == len(outlines) == 2
        assert {to_hex(patch.get_edgecolor()) for patch in outlines} <= OKABE_ITO
        assert {to_hex(line.get_color()) for line in axes.get_lines()} <= {*OKABE_ITO, GREY}


def test_every_axis_has_its_label_and_nothing_is_cut_off(pictures: dict[str, Picture]) -> None:
    for name, picture in pictures.items():
        figure = picture.figure
        for axes in figure.axes if name != "strip" else ():
            assert axes.get_ylabel() or len(axes.get_shared_y_axes().get_siblings(axes)) > 1
            assert axes.get_xlabel() or not (axes.get_subplotspec() and axes.get_subplotspec().is_last_row())
        box = figure.get_tightbbox()
        assert min(box.x0, box.y0) >= -0.02
        assert box.x1 <= figure.get_figwidth() + 0.02
        assert box.y1 <= figure.get_figheight() + 0.02


def test_the_same_results_give_the_same_bytes_whatever_the_users_style(
    results: Results, pictures: dict[str, Picture]
) -> None:
    before = dict(matplotlib.rcParams)
    files = {name: picture.svg for name, picture in pictures.items()}
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "none", "axes.facecolor": "red", "savefig.dpi": 30}):
        again = all_drawn(results)
        assert files == {name: picture.svg for name, picture in again.items()}
        assert again["figure_1"].png == pictures["figure_1"].png
    # Drawn once more: the first drawing leaves nothing behind that moves the second.
    assert replace(again["figure_1"]).svg == files["figure_1"]


def test_save_writes_files_without_dates_or_software(pictures: dict[str, Picture], tmp_path: Path) -> None:
    picture = pictures["accuracy_vs_eps"]
    save(picture, tmp_path / "new")
    png, svg = sorted((tmp_path / "new").iterdir())
    assert [png.name, svg.name] == ["accuracy_vs_eps-digits.png", "accuracy_vs_eps-digits.svg"]
    with Image.open(io.BytesIO(png.read_bytes())) as image:
        assert set(image.info) == {"dpi"}
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.02)  # it is kept in whole dots per metre
        assert image.size == tuple(round(150 * side) for side in picture.figure.get_size_inches())
    text = svg.read_text()
    assert "<svg" in text
    assert "dc:date" not in text
    assert "Matplotlib" not in text


@pytest.mark.parametrize("name", ["digits", "strong-svhn-grey", "alpha-digits", "hardening-digits"])
def test_a_grid_without_results_has_no_figures(name: str) -> None:
    assert all_drawn(Results(grids.get(name), {}, {}, {})) == {}


def test_partial_results_give_figures_of_the_existing_records(results: Results) -> None:
    runs, grid = results.grid.runs(), results.grid
    only_curves = replace(results, records={})
    assert list(all_drawn(only_curves)) == ["figure_1", "bounds", "learning_curves"]
    plain = {k: v for k, v in results.curves[runs[0]][0].items() if k not in ("attacks", "bounds")}
    begun = all_drawn(replace(only_curves, curves={runs[0]: [plain]}))
    assert list(begun) == ["learning_curves"]
    assert "One seed" in begun["learning_curves"].caption
    assert shadings(begun["learning_curves"].figure.axes[0]) == []
    uneven = replace(results, curves={run: rows[: 2 - run.seed] for run, rows in results.curves.items()})
    assert "1 to 2 seeds" in drawn(uneven, "figure_1").caption
    clean = {key: r for key, r in results.records.items() if key[1] == AttackSpec("none")}
    assert list(all_drawn(Results(grid, clean, {}, {}))) == ["margins", "strip", "reliability"]
    later = {key: r for key, r in results.records.items() if key[0].seed == 1}
    assert "seed 1" in drawn(Results(grid, later, {}, {}), "strip").caption
