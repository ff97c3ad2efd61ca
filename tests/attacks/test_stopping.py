"""Tests of worst_case during a run and after an interrupt: the progress bar, and the result of the finished attacks."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from art.attacks import evasion
from torch import nn

from art_hrloss import HRClassifier, HRLoss, ensemble, worst_case
from art_hrloss.attacks import HopSkipJumpAttack, ProjectedGradientDescent, SquareAttack

EPS = 0.1


@pytest.fixture
def x(digits):
    return digits.x_test[:30].copy()


@pytest.fixture
def y(digits):
    return digits.y_test[:30].copy()


def stopped(kind):
    """Return a class of attacks that are interrupted by Ctrl-C when half of the images are attacked."""

    class Stopped(kind):
        def generate(self, x, y=None, **options):
            super().generate(x[: len(x) // 2], y[: len(y) // 2], **options)
            raise KeyboardInterrupt

    return Stopped


@pytest.fixture
def attacks(art_classifier):
    """FGSM, PGD, a Square attack that is interrupted, and PGD again."""
    classifier = art_classifier()
    steps = {"eps": EPS, "eps_step": 0.03, "max_iter": 5, "verbose": False}
    return {
        "FGSM": evasion.FastGradientMethod(classifier, eps=EPS),
        "PGD": ProjectedGradientDescent(classifier, loss="margin", **steps),
        "Square": stopped(SquareAttack)(classifier, eps=EPS, max_iter=5, verbose=False),
        "PGD again": ProjectedGradientDescent(classifier, loss="ce", **steps),
    }


def test_an_interrupt_has_the_result_of_the_finished_attacks(art_classifier, attacks, x, y):
    classifier = art_classifier()
    with pytest.raises(KeyboardInterrupt) as caught:
        worst_case(classifier, x, y, eps=EPS, attacks=attacks, verbose=False)
    # Only an exception of this class makes Python end a script with the status of an interrupted one.
    assert caught.type is KeyboardInterrupt
    assert "Square" in "".join(caught.value.__notes__)
    partial = caught.value.partial_result
    finished = {name: attacks[name] for name in ("FGSM", "PGD")}
    expected = worst_case(classifier, x, y, eps=EPS, attacks=finished, verbose=False)
    assert expected.complete
    assert not partial.complete
    assert partial.unfinished == ("Square", "PGD again")
    assert (partial.names, partial.attacked) == (expected.names, expected.attacked)
    np.testing.assert_array_equal(partial.found_by, expected.found_by)
    np.testing.assert_array_equal(partial.adversarial, expected.adversarial)
    assert partial.accuracy_after == expected.accuracy_after
    assert 0 < partial.accuracy < 1
    # The table shows which attacks have not finished.
    frame = partial.to_frame()
    assert list(frame["attack"]) == ["no attack", *attacks]
    assert frame["accuracy"].isna().tolist() == [False, False, False, True, True]
    assert frame["found"].sum() == (partial.found_by >= 0).sum()
    title, _, *rows = str(partial).splitlines()
    assert "Square" in title
    assert [row.split()[-1] == "-" for row in rows] == [False, False, False, True, True]


def test_other_exceptions_also_have_the_partial_result(art_classifier, attacks, x, y):
    class Failing(evasion.FastGradientMethod):
        def generate(self, x, y=None, **options):
            raise MemoryError("out of memory")

    attacks["Square"] = Failing(art_classifier(), eps=EPS)
    with pytest.raises(MemoryError, match="out of memory") as caught:
        worst_case(art_classifier(), x, y, eps=EPS, attacks=attacks, verbose=False)
    assert caught.value.partial_result.names == ("no attack", "FGSM", "PGD")


def test_an_interrupt_restores_modes_generators_and_verbose(network, attacks, x, y):
    network.train()
    options = {"clip_values": (0.0, 1.0), "device_type": "cpu"}
    classifier = HRClassifier(network, HRLoss(), (1, 8, 8), 10, **options)
    attacks["Square"].set_params(verbose=True)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    with pytest.raises(KeyboardInterrupt):
        worst_case(classifier, x, y, eps=EPS, attacks=attacks, verbose=False)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])
    assert all(module.training for module in network.modules())
    assert attacks["Square"].verbose


SCRIPT = """
import signal, sys, numpy as np, torch
from art_hrloss import HRClassifier, HRLoss, ensemble, worst_case

signal.signal(signal.SIGINT, signal.default_int_handler)  # independent of the signal handling of the test run
torch.set_num_threads(1)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
classifier = HRClassifier(network, HRLoss(), (1, 8, 8), 3, clip_values=(0, 1), device_type="cpu")
x = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
attacks = ensemble(classifier, eps=1e-6, max_iter=2, square_iter=10**7)
begin = attacks["Square"].generate

def announced(*arguments):
    print("Square", flush=True)
    return begin(*arguments)

attacks["Square"].generate = announced
for turn in range(3):
    try:
        worst_case(classifier, x, classifier.predict(x).argmax(1), eps=1e-6, attacks=attacks)
    except KeyboardInterrupt as interrupt:
        print(len(interrupt.partial_result.names), *interrupt.partial_result.unfinished, flush=True)
        raise
"""


def test_an_interrupted_script_exits_as_interrupted():
    """A loop in a shell continues after a program that ends with any other status."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=root, **pipes) as process:
        assert process.stdout.readline() == "Square\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT
    assert output == "5 Square\n"
    assert "partial_result" in errors
    assert "20 of 20" in errors  # the bar


# Bars


def bars(text):
    """Return the texts of the progress bars that were written to the terminal."""
    return [re.sub(r"\d+%.*\|", "", state).strip() for state in re.split(r"[\r\n]+", text) if state.strip()]


def test_the_progress_bar_shows_the_attack_and_the_robust_accuracy(art_classifier, attacks, x, y, capfd):
    del attacks["Square"]
    result = worst_case(art_classifier(), x, y, eps=EPS, attacks=attacks)
    states, counts = bars(capfd.readouterr().err), np.cumsum([(result.found_by == i).sum() for i in range(3)])
    for name, left in zip(attacks, len(x) - counts, strict=True):
        assert any(name in state and f"{left} of {len(x)}" in state for state in states), name


def test_the_progress_bar_is_updated_during_a_long_attack(art_classifier, x, y, capfd):
    class Sleeping(evasion.FastGradientMethod):
        def generate(self, x, y=None, **options):
            signal.sigtimedwait([], 2.5)
            return super().generate(x, y, **options)

    worst_case(art_classifier(), x, y, eps=EPS, attacks={"long": Sleeping(art_classifier(), eps=EPS)})
    states = bars(capfd.readouterr().err)
    assert any("00:01" in state or "00:02" in state for state in states)


def loud(classifier):
    """Return attacks with progress bars, ART's default; two of them consist of other attacks."""
    steps = {"eps": EPS, "eps_step": 0.05, "max_iter": 2}
    hop = HopSkipJumpAttack(classifier, norm=np.inf, max_iter=1, max_eval=20, init_eval=5)
    return {
        "PGD": evasion.ProjectedGradientDescent(classifier, **steps),
        "ours": ProjectedGradientDescent(classifier, **steps),
        "APGD": evasion.AutoProjectedGradientDescent(classifier, **steps, nb_random_init=1),
        "Square": SquareAttack(classifier, eps=EPS, max_iter=2),
        "HopSkipJump": hop,
    }


@pytest.mark.parametrize("verbose", [True, False])
def test_the_progress_bars_of_the_attacks_are_off(art_classifier, x, y, capfd, verbose):
    classifier = art_classifier(nn.CrossEntropyLoss())
    attacks = loud(classifier)
    capfd.readouterr()  # the constructor of ART's Auto-PGD calls predict
    worst_case(classifier, x[:10], y[:10], eps=EPS, attacks=attacks, verbose=verbose)
    output = capfd.readouterr()
    assert all(state.startswith("worst case") for state in bars(output.err))
    assert bool(output.err) == verbose
    assert output.out == ""
    assert all(attack.verbose for attack in attacks.values())
    assert attacks["PGD"]._attack.verbose


@pytest.mark.parametrize("name", ["PGD", "ours", "APGD", "Square", "HopSkipJump"])
def test_a_single_attack_shows_a_progress_bar_only_if_verbose(art_classifier, x, y, capfd, name):
    attack = loud(art_classifier(nn.CrossEntropyLoss()))[name]
    for verbose in (True, False):
        attack.set_params(verbose=verbose)
        capfd.readouterr()
        attack.generate(x[:5], y[:5])
        assert bool(capfd.readouterr().err) == verbose


def test_images_do_not_depend_on_verbose(art_classifier, x, y):
    classifier = art_classifier()
    attacks = ensemble(classifier, eps=EPS, max_iter=3, target_classes=1, square_iter=20)
    output, silent = (
        worst_case(classifier, x, y, eps=EPS, attacks=attacks, verbose=verbose) for verbose in (True, False)
    )
    np.testing.assert_array_equal(output.adversarial, silent.adversarial)


@pytest.mark.parametrize("verbose", [None, 1, "yes"])
def test_verbose_is_true_or_false(art_classifier, x, y, verbose):
    with pytest.raises(ValueError, match="verbose"):
        worst_case(art_classifier(), x, y, eps=EPS, attacks={}, verbose=verbose)


# Tables


def test_a_notebook_shows_a_table_with_every_name_escaped(art_classifier, x, y):
    classifier = art_classifier()
    attacks = {"<FGSM> & co": evasion.FastGradientMethod(classifier, eps=EPS)}
    result = worst_case(classifier, x, y, eps=EPS, attacks=attacks, verbose=False)
    html = result._repr_html_()
    assert "&lt;FGSM&gt; &amp; co" in html
    assert "<FGSM>" not in html
    assert html.count("<tr>") == 3
    assert repr(result) == str(result)  # at a prompt, where a list of all pixels would be useless
    assert "color" not in html  # the colours are those of the theme, light or dark
    assert f"{result.accuracy:.3f}" in html
