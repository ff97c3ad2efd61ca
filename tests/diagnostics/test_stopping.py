"""Tests of gradient_masking_report during a run and after an interrupt."""

import numpy as np
import pytest
from torch import nn

from art_hrloss import gradient_masking_report
from art_hrloss.attacks import SquareAttack
from benchmarks.autoattack.masked import rounding

SETTINGS = {"eps": 0.1, "max_iter": 3, "square_iter": 20, "noise_draws": 2}


@pytest.fixture
def few(digits):
    """Enough test images for a flag of useless gradients."""
    return digits.x_test[:40].copy(), digits.y_test[:40].copy()


class PressedAt(nn.Module):
    """A network that raises KeyboardInterrupt after a number of images, as if the user pressed Ctrl-C."""

    def __init__(self, network, images):
        super().__init__()
        self.network, self.left = network, images

    def forward(self, x):
        self.left -= len(x)
        if self.left < 0:
            raise KeyboardInterrupt
        return self.network(x)


def stopped_after(make, network, images, few):
    with pytest.raises(KeyboardInterrupt) as caught:
        gradient_masking_report(make(network=PressedAt(network, images)), *few, **SETTINGS, verbose=False)
    assert caught.type is KeyboardInterrupt
    return caught.value.partial_result


def measured(report):
    return [row for row in report.rows() if row[0] != "detectable"]


def test_an_interrupted_report_has_a_part_of_the_complete_measurements(hr_classifier, network, few):
    whole_report = gradient_masking_report(hr_classifier(network=network), *few, **SETTINGS, verbose=False)
    assert whole_report.complete
    sizes = set()
    for images in (100, 300, 500, 900, 1600):  # of about 2000
        partial = stopped_after(hr_classifier, network, images, few)
        rows, missing = measured(partial), partial.unfinished
        sizes.add(len(rows))
        # The steps finish in their order, which may differ from the order of the rows.
        assert set(rows) < set(measured(whole_report))
        assert partial.flagged
        assert partial.flags[0].name == "incomplete report"
        assert all(name in partial.flags[0].evidence for name in missing)
        assert (whole_report.robust <= partial.robust).all()
        assert len(partial.to_frame()) == len(partial.rows())
        assert str(partial).count("incomplete report") == partial._repr_html_().count("incomplete report") == 1
    assert len(sizes) >= 4


def test_an_interrupted_report_has_the_flags_of_finished_measurements(hr_classifier, network, few):
    partial = stopped_after(hr_classifier, rounding(network), 400, few)
    assert [flag.name for flag in partial.flags] == ["incomplete report", "zero gradients"]


def test_an_interrupt_within_an_attack_of_the_report(hr_classifier, few, monkeypatch):
    def generate(self, x, y=None, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(SquareAttack, "generate", generate)
    with pytest.raises(KeyboardInterrupt) as caught:
        gradient_masking_report(hr_classifier(), *few, **SETTINGS, verbose=False)
    partial = caught.value.partial_result
    assert partial.unfinished[0] == "Square"
    assert len(partial.auto_pgd) == len(few[0])
    assert len(partial.noise) == 0


def test_there_is_one_progress_bar_which_names_each_measurement(hr_classifier, few, capfd):
    report = gradient_masking_report(hr_classifier(), *few, **SETTINGS)
    output = capfd.readouterr()
    states = [state for state in output.err.replace("\n", "\r").split("\r") if state.strip()]
    assert all(state.startswith("gradient masking") for state in states)
    for name in ("FGSM", "PGD of 3 steps", "PGD of 6 steps", "Auto-PGD", "Square", "noise"):
        assert any(name in state for state in states), name
    assert f"{report.robust.sum()} of {len(few[0])}" in states[-2] + states[-1]
    assert output.out == ""
    silent = gradient_masking_report(hr_classifier(), *few, **SETTINGS, verbose=False)
    assert capfd.readouterr() == ("", "")
    assert str(report) == str(silent)
    np.testing.assert_array_equal(report.robust, silent.robust)
    np.testing.assert_array_equal(report.black_box["Square"], silent.black_box["Square"])
    with pytest.raises(ValueError, match="verbose"):
        gradient_masking_report(hr_classifier(), *few, **SETTINGS, verbose=None)


def test_the_frame_of_flags_has_a_row_per_flag(hr_classifier, network, few):
    report = gradient_masking_report(hr_classifier(network=rounding(network)), *few, **SETTINGS, verbose=False)
    frame = report.to_frame(of="flags")
    assert list(frame.columns) == ["flag", "evidence", "remedy"]
    assert [tuple(row) for row in frame.itertuples(index=False)] == [
        (flag.name, flag.evidence, flag.remedy) for flag in report.flags
    ]
    assert len(frame) > 1
    html = report._repr_html_()
    assert html.count("<li>") == len(report.flags) + 1  # and the power of the tests
    with pytest.raises(ValueError, match="flag"):
        report.to_frame(of="flag")
