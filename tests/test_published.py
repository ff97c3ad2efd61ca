"""What is published, in README and benchmarks/results, is what the records and readings beside it say."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from art_hrloss.bounds import beta

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PUBLISHED = [ROOT / f"benchmarks/results/{grid}/table_1.md" for grid in ("digits", "mnist-short")]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_readme_shows_the_published_tables_and_their_commands(path: Path) -> None:
    published = path.read_text()
    table = "\n".join(line for line in published.splitlines() if line.startswith("|"))
    assert table in README
    command = re.search(r"Made by (`.*`)", published).group(1)
    assert f"made by {command}" in README


# The attacks of Table 1's rows, as the records name them: loss (of CE; of HR), units.
ROWS = {
    "no attack": (("", ""), "range"),
    "sound": (("ce", "hr"), "range"),
    "torch's CE": (("torch-ce", ""), "range"),
    "paper": (("clipped-ce", "clipped-hr"), "data"),
}


def entries(path: Path) -> Iterator[tuple[float, str, str, str]]:
    """A published table's entries: eps, protocol, column, text."""
    lines = [line.split("|")[1:-1] for line in path.read_text().splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line] for line in lines)
    eps = ""
    for row in rows:
        eps = row[0] or eps
        yield from ((float(eps), row[1], name, text) for name, text in zip(header[2:], row[2:], strict=True))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks/results").glob("*/table_1.md")), ids=lambda p: p.parent.name
)
def test_every_entry_of_a_published_table_1_is_that_of_its_records(path: Path) -> None:
    records = pd.read_csv(path.with_name("records.csv"), keep_default_na=False)
    records = records[records.split == "test"]
    seen = 0
    for eps, protocol, column, text in entries(path):
        if protocol == "printed" or not text:
            continue
        trained, by = re.fullmatch(r"(.*) trained, (CE attack|HR attack|worst case)", column).groups()
        losses, units = ROWS[protocol]
        if by == "worst case":
            chosen = (records.attack == "worst-case") & (records.units == units)
        else:
            whole = (records.images == 0) & records.attack.isin(["none", "fgm"])
            chosen = whole & (records.attack_loss == losses[by == "HR attack"]) & (records.units == units)
        found = records[chosen & (records.trained == trained) & (records.eps == eps)]
        assert sorted(found.seed) == sorted(set(records.seed))
        share = found.correct / found.n
        half_width = scipy.stats.t.ppf(0.975, len(share) - 1) * share.sem()
        expected = f"{share.mean():z.3f} ± {half_width:.3f}"
        if by != "worst case" and eps:
            zero = pd.to_numeric(found.zero_gradient).sum() / found.n.sum()
            expected += ("†" if zero > 0.001 else "") + f" ({zero:.1%})"
        assert text == expected
        seen += 1
    assert seen >= 10


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results").glob("*/*.md")), ids=str)
def test_every_mark_in_a_published_table_has_its_note(path: Path) -> None:
    text = path.read_text()
    for mark in "†‡":
        assert (mark in text) == any(line.startswith(mark) for line in text.splitlines())


def test_readme_tells_which_alpha_masks_most() -> None:
    records = pd.read_csv(ROOT / "benchmarks/results/alpha-digits/records.csv")
    paper = records[(records.units == "data") & records.trained.str.startswith("HR")]
    for _, rows in paper.groupby("eps"):
        sums = rows.groupby("trained")[["correct", "zero_gradient", "n"]].sum()
        assert sums.correct.idxmax() == sums.zero_gradient.idxmax() == "HR(1.6)"
        assert f"{sums.zero_gradient['HR(1.6)'] / sums.n['HR(1.6)']:.0%}" == "52%"
    sound = records[(records.units == "range") & (records.eps == 0.25)]
    assert (
        sound.groupby(["split", "trained"]).correct.sum() / sound.groupby(["split", "trained"]).n.sum()
    ).max() < 0.06


def test_readme_draws_its_paired_differences_from_the_records() -> None:
    records = pd.read_csv(ROOT / "benchmarks/results/mnist-short/records.csv")
    records["accuracy"] = records.correct / records.n

    def of(trained: str, loss: str, eps: float) -> pd.Series:
        rows = records[(records.trained == trained) & (records.attack_loss == loss) & (records.eps == eps)]
        return rows.set_index("seed").accuracy

    def paired(first: pd.Series, second: pd.Series, digits: int = 2) -> str:
        difference = first - second
        half_width = scipy.stats.t.ppf(0.975, len(difference) - 1) * difference.sem()
        return f"{difference.mean():z.{digits}f} ± {half_width:.{digits}f}"

    text = " ".join(README.split())
    by_loss = {eps: paired(of("HR(1.6)", "ce", eps), of("CE", "ce", eps)) for eps in (0.1, 0.25)}
    assert f"keep {by_loss[0.25]} more at eps 0.25 under the CE attack, and {by_loss[0.1]} more at eps 0.1" in text
    ce = paired(of("CE", "clipped-ce", 0.25), of("CE", "ce", 0.25), digits=3)
    hr = paired(of("HR(1.6)", "clipped-ce", 0.25), of("HR(1.6)", "ce", 0.25))
    assert f"that adds {ce} for CE-trained networks and {hr} for HR-trained ones" in text
    assert (records.zero_gradient[records.attack_loss.isin(["ce", "hr"])] == 0).all()


def test_readme_takes_the_tightness_of_proposition_1_from_the_records() -> None:
    found = pd.read_csv(ROOT / "benchmarks/results/mnist-short/bounds.csv")
    found = found[found.trained == "CE"].set_index(["eps", "labels"]).sort_index()

    def mean(eps: float, field: str, labels: str = "labels") -> float:
        values = found.loc[(eps, labels), field]
        assert len(values) == 5
        return (np.exp(values) if field.startswith("log_") else values).mean()

    text = " ".join(README.split())
    assert f"err on {mean(0, 'error'):.4f} of the test images" in text
    assert f"at most {mean(0, 'log_upper_bound'):.3f} at alpha = 1.6" in text
    assert f"and {mean(0, 'log_tightest_upper_bound'):.3f} at its best alpha" in text
    assert f"by (11), {mean(0, 'log_relaxed_bound'):.3f}" in text
    assert f"says {mean(0, 'log_markov_bound'):.3f}: CE / log 2" in text
    assert f"(1) says {mean(0.1, 'log_tightest_upper_bound'):.3f} at its best alpha" in text
    assert f"where the error is {mean(0.1, 'error'):.3f}" in text
    assert (found.loc[(0.25, "labels"), "tightest_alpha"] == 1).all()
    noisy = mean(0, "error", "noisy_labels"), mean(0, "log_tightest_lower_bound", "noisy_labels")
    expected = f"of an error of the CE-trained networks of {noisy[0]:.3f} it says at least {noisy[1]:.1e}"
    assert expected.replace("e-0", "e-") in text
    hr = pd.read_csv(ROOT / "benchmarks/results/mnist-short/bounds.csv")
    hr = hr[(hr.trained == "HR(1.6)") & (hr.eps == 0) & (hr.labels == "labels")]
    assert f"(1) says {np.exp(hr.log_upper_bound).mean():.3f} at alpha = 1.6, more than 1 for one network" in text
    assert (hr.log_upper_bound > 0).sum() == 1
    best = np.exp(hr.log_tightest_upper_bound).mean()
    assert f"and {best:.3f} at its best alpha, of an error of {hr.error.mean():.3f}" in text
    assert f"{beta(10):.2f} for 10 classes" in text
    assert f"{math.exp(-0.6 / 1.6):.2f} at alpha = 1.6" in text


STRONG = pytest.mark.parametrize(
    ("name", "folder", "seeds", "strengths"),
    [
        ("digits", "strong-digits", 5, (0.1, 0.2, 0.3)),
        ("mnist", "strong-mnist", 5, (0.1, 0.2, 0.3)),
        ("cifar10", "strong-cifar10-seeds-3", 3, (0.004, 0.008, 0.016)),
        ("svhn_grey", "strong-svhn-grey-seeds-3", 3, (0.004, 0.008, 0.016)),
    ],
)


@STRONG
def test_readme_takes_what_is_real_from_the_published_records(
    name: str, folder: str, seeds: int, strengths: tuple[float, ...]
) -> None:
    records = pd.read_csv(ROOT / f"benchmarks/results/{folder}/records.csv")
    records["accuracy"] = records.correct / records.n

    def of(attack: str, loss: str | None, eps: float) -> pd.DataFrame:
        rows = records[(records.attack == attack) & (records.eps == eps)]
        rows = rows if loss is None else rows[rows.attack_loss == loss]
        return rows.pivot(index="seed", columns="trained", values="accuracy")

    def interval(values: pd.Series) -> str:
        assert len(values) == seeds
        return f"{values.mean():z.3f} ± {scipy.stats.t.ppf(0.975, seeds - 1) * values.sem():.3f}"

    for eps in strengths:
        paper, worst = of("fgm", "clipped-ce", eps), of("worst-case", None, eps)
        gains = [found["HR(1.6)"] - found["CE"] for found in (paper, worst)]
        left = (worst["CE"], worst["HR(1.6)"])
        row = " | ".join(map(interval, (*gains, gains[0] - gains[1], *left)))
        assert f"| {name} | {eps:g} | {row} |" in README
    if name == "mnist":
        text = " ".join(README.split())
        assert f"it leaves {interval(of('fgm', 'ce', 0.2)['HR(1.6)'])} to the HR-trained" in text
        left = [interval(of("transfer", None, 0.2)[trained]) for trained in ("HR(1.6)", "CE")]
        worst = of("worst-case", None, 0.2)["HR(1.6)"].mean()
        assert f"at eps 0.2 they leave {left[0]}, and {left[1]} of the CE-trained." in text
        assert f"for the worst case leaves {worst:.3f};" in text
    if name in ("cifar10", "svhn_grey"):
        clipped = records[records.attack_loss == "clipped-ce"]
        assert (clipped[clipped.attack == "fgm"].zero_gradient == 0).all()
        assert (of("worst-case", None, 0.016) <= 0.01).all().all()


def test_readme_tells_which_attackers_the_reports_flag() -> None:
    found = pd.read_csv(ROOT / "benchmarks/results/strong-digits/diagnostics.csv")
    by_eps = found.assign(flagged=found.flag.notna()).groupby(["attacker", "trained", "eps", "seed"]).flagged.any()
    assert len(by_eps) == 2 * 2 * 4 * 5
    assert by_eps["paper", "HR(1.6)"].all()
    assert not by_eps["sound"].any()
    assert "it flags [all five HR-trained networks]" in " ".join(README.split())


def test_readme_takes_what_hardening_adds_from_the_published_records() -> None:
    records = pd.read_csv(ROOT / "benchmarks/results/hardening-digits/records.csv")
    records["accuracy"] = records.correct / records.n

    def of(trained: str, attack: str, eps: float) -> pd.Series:
        rows = records[(records.trained == trained) & (records.attack == attack.split()[0]) & (records.eps == eps)]
        rows = rows if attack == "worst-case" else rows[rows.attack_loss == attack.split()[1]]
        return rows.set_index("seed").accuracy

    def interval(values: pd.Series) -> str:
        assert len(values) == 5
        return f"{values.mean():z.3f} ± {scipy.stats.t.ppf(0.975, 4) * values.sem():.3f}"

    entries = (("fgm clipped-ce", 0.2), ("worst-case", 0.1), ("worst-case", 0.2))
    losses = ("CE", "CE, margin 14.5", "HR(1.6)")
    hardened = [f"{loss}, {kind} 0.1" for kind in ("Madry", "TRADES") for loss in ("CE", "HR(1.6)")]
    hardened = [f"{name}, beta 6" if "TRADES" in name else name for name in hardened]
    for trained in (*losses, *hardened, "HR(1.6), TRADES 0.1, beta 12"):
        row = " | ".join(interval(of(trained, *entry)) for entry in entries)
        assert f"| {trained} | {row} |" in README
    text = " ".join(README.split())

    def gain(trained: str, ce: str, attack: str, eps: float) -> str:
        return interval(of(trained, attack, eps) - of(ce, attack, eps))

    paper, worst = ([gain(t, "CE", *entry) for t in losses[1:]] for entry in (entries[0], entries[2]))
    assert f"seems to gain {paper[0]} over CE at eps 0.2, where the HR loss gains {paper[1]}." in text
    assert f"neither gains: {worst[0]} and {worst[1]}." in text
    madry = [gain("HR(1.6), Madry 0.1", "CE, Madry 0.1", *entry) for entry in entries[1:]]
    assert f"is shown: {madry[0]} at eps 0.1, {madry[1]} at 0.2." in text

    def by_trades(hr: int, ce: int) -> list[str]:
        names = f"HR(1.6), TRADES 0.1, beta {hr}", f"CE, TRADES 0.1, beta {ce}"
        return [gain(*names, *entry) for entry in entries[1:]]

    near, far = zip(*(by_trades(beta, beta) for beta in (3, 6, 12)), strict=True)
    assert f"the differences are {near[0]}, {near[1]} and {near[2]} at eps 0.1" in text
    assert f"and {far[0]}, {far[1]} and {far[2]} at eps 0.2" in text
    near, far = zip(*(by_trades(2 * beta, beta) for beta in (3, 6)), strict=True)
    assert f"it is {near[0]} and {near[1]} at eps 0.1, and {far[0]} and {far[1]} at 0.2." in text
    smoothed = [interval(of("CE, smoothing 0.1", attack, 0.1)) for attack in ("fgm ce", "worst-case")]
    assert f"at eps 0.1 ({smoothed[0]}) and is little more than CE in the worst case ({smoothed[1]})" in text


@STRONG
def test_published_gains_of_strong_attacks_are_those_of_the_published_records(
    name: str, folder: str, seeds: int, strengths: tuple[float, ...]
) -> None:
    published = ROOT / "benchmarks/results" / folder
    records = pd.read_csv(published / "records.csv")
    broken = pd.read_csv(published / "broken_by.csv")
    worst = records[records.attack == "worst-case"].set_index(["trained", "seed", "eps"])
    lost = broken.groupby(["trained", "seed", "eps"]).broken.sum()
    assert (worst.n - worst.correct == lost.reindex(worst.index)).all()
    share = (worst.correct / worst.n).unstack("seed")
    difference = share.loc["HR(1.6)"] - share.loc["CE"]
    text = (published / "strong.md").read_text()
    assert set(strengths) < set(difference.index)
    for eps, values in difference.iterrows():
        half_width = scipy.stats.t.ppf(0.975, seeds - 1) * values.sem()
        entry = f"{values.mean():z.3f} ± {half_width:.3f} |"
        row = next(line for line in text.split(f"| {eps:g} |")[1].splitlines() if "HR(1.6) - CE" in line)
        assert row.endswith(entry)


def speed_rows() -> list[str]:
    """The tables of README's section on speed, from the published readings."""
    loss, attacks = (pd.read_csv(ROOT / f"benchmarks/results/speed/{part}.csv") for part in ("loss", "attacks"))

    def shown(readings: pd.DataFrame, case: str, contender: str, quantity: str, against: str | None) -> str:
        rows = readings[(readings.case == case) & (readings.contender == contender) & (readings.quantity == quantity)]
        found = rows[rows.against.isna() if against is None else rows.against == against]
        values = found[["median", "lower", "upper"]].to_numpy()[0]
        return f"{values[0]:.2f}" if found.n.item() == 1 else "{:.2f} [{:.2f}, {:.2f}]".format(*values)

    rows = []
    for size in ("(128, 10)", "(4096, 10)", "(4096, 1000)", "(256, 50000)"):
        entries = [
            shown(loss, f"{size}, {place}", f"HR, {how}", "ratio", f"CE, {how}")
            for how in ("eager", "compiled")
            for place in ("1 thread", "2 threads")
        ]
        memory = (
            shown(loss, f"{size}, 1 thread", name, "peak memory / logits", None) for name in ("HR, eager", "CE, eager")
        )
        rows.append(f"| {size} | " + " | ".join([*entries, *memory]) + " |")
    for case in attacks.case.unique():
        hand = "loop by hand, {}"
        pairs = [("art_hrloss, HR", "HR"), ("art_hrloss, CE", "CE"), ("ART, PyTorchClassifier, CE", "CE")]
        pairs += [("Foolbox, CE", "CE"), ("torchattacks, CE", "CE")]
        entries = [
            shown(attacks, case, name, "ratio", hand.format(which)) if has(attacks, case, name) else "-"
            for name, which in pairs
        ]
        rows.append(f"| {case} | " + " | ".join(entries) + " |")
    return rows


def training_rows(training: pd.DataFrame) -> list[str]:
    """README's table of what a run takes in, beside a bare loop."""
    shares = training[training.quantity == "throughput / bare loop"].set_index(["case", "contender"])
    kinds = ("whole run, CE", "whole run, HR", "whole run, followed, HR", "DataLoader loop, CE", "ART's fit, CE")
    rows = []
    for case in ("small CNN, digits", "LeNet, mnist", "ResNet-8, cifar10"):
        found = (shares.loc[(case, kind), ["median", "lower", "upper"]] for kind in kinds)
        rows.append(f"| {case} | " + " | ".join("{:.2f} [{:.2f}, {:.2f}]".format(*values) for values in found) + " |")
    return rows


def test_readme_takes_what_training_costs_from_the_published_readings() -> None:
    training = pd.read_csv(ROOT / "benchmarks/results/speed/training.csv")
    page, text = (ROOT / "benchmarks/results/speed/training.md").read_text(), " ".join(README.split())
    assert all(row in README for row in training_rows(training))
    assert "--output benchmarks/results/speed --seconds 60.0 --part training`" in page
    assert "WARNING" not in page
    shares = training[training.quantity == "share of a run"]["median"]
    assert f"Fig. 1's attacks take {shares.min():.0%}".removesuffix("%") + f" to {shares.max():.0%} of a run" in text
    at_once = training[(training.quantity == "ratio") & (training.contender == "trained at once")].set_index("x")
    assert f"ten runs of the digits take {at_once['median'][10]:.2f} of their time one after the other" in text
    assert f"and one, stacked, {at_once['median'][1]:.2f}." in text
    pools = training[training.contender == "pool of processes"].set_index("x")["median"]
    assert f"Two workers do the runs of one in {pools[2] / pools[1]:.2f} of its time" in text


def has(attacks: pd.DataFrame, case: str, contender: str) -> bool:
    """Whether a contender was timed in that case: Foolbox has no Auto-PGD."""
    return bool(((attacks.case == case) & (attacks.contender == contender) & (attacks.quantity == "ratio")).any())


def test_readme_takes_what_is_fast_from_the_published_readings() -> None:
    rows = speed_rows()
    assert len(rows) == 4 + 8
    for row in rows:
        assert row in README
    for part in ("loss", "attacks", "growth"):
        text = (ROOT / f"benchmarks/results/speed/{part}.md").read_text()
        command = f"python -m benchmarks speed --output benchmarks/results/speed --seconds 200.0 --part {part}"
        assert f"Made by `{command}`" in text
        assert "WARNING" not in text
    text = " ".join(README.split())
    growth = pd.read_csv(ROOT / "benchmarks/results/speed/growth.csv")
    ratios = growth[growth.quantity == "ratio"].set_index(["case", "x"])["median"]
    by_batch, by_classes = ratios["batch (10 classes)"], ratios["classes (batch 128)"]
    assert by_batch[256] > 1 > by_batch[1024]
    assert f"takes {by_batch[8192]:.2f} of CE's time for 8192" in text
    assert by_classes.loc[:10_000].between(1.7, 3.0).all()
    assert by_classes[50_000] < 1
