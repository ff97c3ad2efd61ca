"""What is published, in README and benchmarks/results, is what the records and readings beside it say."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from art_hrloss.bounds._formulas import beta

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TEXT = " ".join(README.split())
# The published folder of each data set's Table 1, claims and strong attacks.
FOLDERS = {
    "mnist": "strong-mnist",
    "cifar10": "strong-cifar10",
    "svhn_grey": "strong-svhn-grey",
    "digits": "strong-digits",
}


def published(folder: str, name: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / "benchmarks/results" / folder / name, keep_default_na=False)


def shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Of records of one attack, the share of right ones: a row per seed, a column per training loss."""
    return rows.assign(accuracy=rows.correct / rows.n).pivot(index="seed", columns="trained", values="accuracy")


def interval(values: pd.Series) -> str:
    """Mean and half-width of the 95% t interval over the five seeds, as published."""
    assert len(values) == 5
    return f"{values.mean():z.3f} ± {scipy.stats.t.ppf(0.975, 4) * values.sem():.3f}"


def test_readme_shows_the_published_tables_and_their_commands() -> None:
    for folder in FOLDERS.values():
        text = (ROOT / f"benchmarks/results/{folder}/table_1.md").read_text()
        assert "\n".join(line for line in text.splitlines() if line.startswith("|")) in README
        command = re.search(r"Made by `(.*)`", text).group(1)
        assert f"made by `{command}`" in TEXT


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
    records = published(path.parent.name, "records.csv")
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
        expected = interval(found.correct / found.n)
        if by != "worst case" and eps:
            zero = pd.to_numeric(found.zero_gradient).sum() / found.n.sum()
            expected += ("†" if zero > 0.001 else "") + f" ({zero:.1%})"
        assert text == expected
        seen += 1
    assert seen >= 10


def headline_rows() -> list[str]:
    """For each data set, eps and training loss: what the paper prints, and what came out, from the tables' entries."""
    rows = []
    for data, folder in FOLDERS.items():
        found = list(entries(ROOT / f"benchmarks/results/{folder}/table_1.md"))
        for eps in (0, 0.1, 0.25):
            by_loss = []
            for trained in ("CE", "HR(1.6)"):
                text = {
                    (protocol, name.removeprefix(f"{trained} trained, ")): text
                    for at, protocol, name, text in found
                    if at == eps and name.startswith(f"{trained} trained, ")
                }
                printed = text.get(("printed", "CE attack"), "")
                clean = text.get(("no attack", "CE attack"), "")
                paper, sound = (text.get((protocol, "CE attack"), clean) for protocol in ("paper", "sound"))
                worst = {protocol: text.get((protocol, "worst case"), "") for protocol in ("paper", "sound")}
                # Pixels in [0, 255]: eps of the paper protocol is another than that of the sound one.
                strengths = [(f"{eps:g}/255", paper, "", worst["paper"]), (f"{eps:g}", "", sound, worst["sound"])]
                if not worst["paper"]:
                    strengths = [(f"{eps:g}", paper, sound, worst["sound"])]
                by_loss.append(
                    [f"| {data} | {at} | {trained} | {' | '.join([printed, *left])} |" for at, *left in strengths]
                )
            rows += [row for pair in zip(*by_loss, strict=True) for row in pair]
    return rows


def test_readmes_headline_is_what_the_published_tables_say() -> None:
    assert "\n".join(headline_rows()) in README


def verdict_rows() -> list[str]:
    """A row for each claim of the paper, by protocol where it is about attacks: a verdict for each data set."""
    found = {data: published(folder, "claims.csv") for data, folder in FOLDERS.items()}
    found["digits"] = pd.concat([found["digits"], published("alpha-digits", "claims.csv").query("claim == 'C6'")])
    statements = pd.concat(found.values()).drop_duplicates("claim").set_index("claim").statement.sort_index()

    def verdict(rows: pd.DataFrame) -> str:
        verdicts = set(rows.verdict) - {"no claim"}
        if not verdicts:
            return "-"
        if "contradicted" in verdicts:
            return "contradicted"
        return "supported" if verdicts == {"supported"} else "undecided"

    rows = []
    for claim, statement in statements.items():
        for protocol in ("paper", "sound", "worst case"):
            of = {
                data: rows[(rows.claim == claim) & rows["where"].str.endswith(protocol)] for data, rows in found.items()
            }
            if any(map(len, of.values())):
                rows.append(f"| {claim} | {statement}: {protocol} | {' | '.join(map(verdict, of.values()))} |")
        if not any(row.startswith(f"| {claim} ") for row in rows):
            of = {data: rows[rows.claim == claim] for data, rows in found.items()}
            rows.append(f"| {claim} | {statement} | {' | '.join(map(verdict, of.values()))} |")
    return rows


def test_readmes_verdicts_are_those_of_the_published_claims() -> None:
    assert "\n".join(verdict_rows()) in README
    found = published("strong-cifar10", "claims.csv").set_index("where")
    worst = found[found.index.str.endswith("worst case")]
    assert list(worst.index[worst.verdict != "undecided"]) == ["HR(1.6), eps 0.004, worst case"]
    gain, clean = (found.loc[where] for where in ("HR(1.6), eps 0.004, worst case", "HR(1.6), no attack"))
    assert f"is supported, {gain.effect:.3f} ± {gain.half_width_95:.3f} at eps 0.004, about 1/255" in TEXT
    assert f"are {-clean.effect:.3f} ± {clean.half_width_95:.3f} less accurate without attack." in TEXT
    svhn = published("strong-svhn-grey", "claims.csv").set_index("where")
    assert (svhn[svhn.index.str.endswith("worst case")].verdict == "undecided").all()
    clean, paper = svhn.loc["HR(1.6), no attack"], svhn[(svhn.claim == "C2") & svhn.index.str.endswith("paper")]
    assert f"without attack (by {-clean.effect:.3f} ± {clean.half_width_95:.3f}) and under it." in TEXT
    assert (paper.verdict == "contradicted").all()


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results").glob("*/*.md")), ids=str)
def test_every_mark_in_a_published_table_has_its_note(path: Path) -> None:
    text = path.read_text()
    for mark in "†‡":
        assert (mark in text) == any(line.startswith(mark) for line in text.splitlines())


def test_readme_tells_what_an_alpha_masks() -> None:
    records = published("alpha-digits", "records.csv")
    at = records[records.eps == 0.25].assign(zero_gradient=pd.to_numeric(records.zero_gradient))
    sums = at.groupby(["units", "split", "trained"])[["correct", "zero_gradient", "n"]].sum()
    paper = sums.loc[("data", "test"), :].loc[[f"HR({alpha:g})" for alpha in (1, 1.2, 1.4, 1.6, 1.8, 2)]]
    assert ((paper.correct - paper.zero_gradient) / paper.n).between(0, 0.01).all()
    zero = paper.zero_gradient / paper.n
    assert f"to within a point: {zero.min():.0%} to {zero.max():.0%}." in TEXT
    sound = sums.loc["range"]
    assert (sound.correct / sound.n).max() < 0.05


def test_readmes_paragraph_to_quote_is_what_the_published_table_says() -> None:
    trained = ("CE", "HR(1.6)")
    table = {
        (protocol, column): text
        for eps, protocol, column, text in entries(ROOT / "benchmarks/results/strong-mnist/table_1.md")
        if eps == 0.25
    }
    quote = " ".join(README.split("\n> ")).replace("\n", " ")
    paper = [table["paper", f"{loss} trained, CE attack"].split("† ") for loss in trained]
    zero = [share.strip("()") for _, share in paper]
    ce, hr = (table["sound", f"{loss} trained, CE attack"].removesuffix(" (0.0%)") for loss in trained)
    worst = [table["sound", f"{loss} trained, worst case"] for loss in trained]
    printed = [table["printed", f"{loss} trained, CE attack"] for loss in trained]
    assert f"leaves LeNets trained with cross-entropy {paper[0][0]} of the test images" in quote
    assert f"those trained with the HR loss {paper[1][0]} (the paper prints {' and '.join(printed)})." in quote
    assert f"input gradients {' and '.join(zero)} are exactly 0 in float32" in quote
    assert f"leaves {ce} and {hr}, and an ensemble of attacks {' and '.join(worst)}." in quote


def test_readme_draws_its_paired_differences_from_the_records() -> None:
    records = published("strong-mnist", "records.csv")
    whole = records[records.images == 0]

    def of(loss: str, eps: float) -> pd.DataFrame:
        return shares(whole[(whole.attack_loss == loss) & (whole.eps == eps)])

    masked = {name: interval(of("clipped-ce", 0.25)[name] - of("ce", 0.25)[name]) for name in ("CE", "HR(1.6)")}
    assert f"adds {masked['CE']} to CE-trained networks at eps 0.25, and {masked['HR(1.6)']} to HR-trained" in TEXT
    gains = {eps: interval(of("ce", eps)["HR(1.6)"] - of("ce", eps)["CE"]) for eps in (0.1, 0.25)}
    assert f"on MNIST: {gains[0.1]} at eps 0.1 and {gains[0.25]} at eps 0.25, paired" in TEXT
    assert all((of("ce", eps).mean() - of("hr", eps).mean()).abs().max() < 0.001 for eps in (0.1, 0.25))
    exact = whole[whole.attack_loss.isin(["ce", "hr"])]
    assert (pd.to_numeric(exact.zero_gradient) == 0).all()
    short = published("mnist-short", "records.csv")
    clean = interval(shares(short[(short.attack == "none") & (short.split == "test")])["HR(1.6)"])
    assert f"the five HR-trained LeNets have {clean} without attack." in TEXT


def test_readme_takes_the_tightness_of_proposition_1_from_the_records() -> None:
    found = pd.read_csv(ROOT / "benchmarks/results/mnist-short/bounds.csv")
    found = found[found.trained == "CE"].set_index(["eps", "labels"]).sort_index()

    def mean(eps: float, field: str, labels: str = "labels") -> float:
        values = found.loc[(eps, labels), field]
        assert len(values) == 5
        return (np.exp(values) if field.startswith("log_") else values).mean()

    assert f"err on {mean(0, 'error'):.4f} of the test images" in TEXT
    assert f"at most {mean(0, 'log_upper_bound'):.3f} at alpha = 1.6" in TEXT
    assert f"and {mean(0, 'log_tightest_upper_bound'):.3f} at its best alpha" in TEXT
    assert f"by (11), {mean(0, 'log_relaxed_bound'):.3f}" in TEXT
    assert f"says {mean(0, 'log_markov_bound'):.3f}: CE / log 2" in TEXT
    assert f"(1) says {mean(0.1, 'log_tightest_upper_bound'):.3f} at its best alpha" in TEXT
    assert f"where the error is {mean(0.1, 'error'):.3f}" in TEXT
    assert (found.loc[(0.25, "labels"), "tightest_alpha"] == 1).all()
    noisy = mean(0, "error", "noisy_labels"), mean(0, "log_tightest_lower_bound", "noisy_labels")
    expected = f"of an error of the CE-trained networks of {noisy[0]:.3f} it says at least {noisy[1]:.1e}"
    assert expected.replace("e-0", "e-") in TEXT
    hr = pd.read_csv(ROOT / "benchmarks/results/mnist-short/bounds.csv")
    hr = hr[(hr.trained == "HR(1.6)") & (hr.eps == 0) & (hr.labels == "labels")]
    assert f"(1) says {np.exp(hr.log_upper_bound).mean():.3f} at alpha = 1.6" in TEXT
    best = np.exp(hr.log_tightest_upper_bound).mean()
    assert f"and {best:.3f} at its best alpha, of an error of {hr.error.mean():.3f}" in TEXT
    assert f"{beta(10):.2f} for 10 classes" in TEXT
    assert f"{math.exp(-0.6 / 1.6):.2f} at alpha = 1.6" in TEXT


# The eps of the strong attacks on each data set that README shows.
SHOWN = {
    "mnist": (0.1, 0.2, 0.3),
    "cifar10": (0.004, 0.008, 0.016),
    "svhn_grey": (0.004, 0.008, 0.016),
    "digits": (0.1, 0.2, 0.3),
}


def strong(folder: str, attack: str, loss: str | None, eps: float) -> pd.DataFrame:
    """Shares of the images of the strong attacks, eps as a share of the pixel range."""
    records = published(folder, "records.csv")
    rows = records[(records.images > 0) & (records.attack == attack) & (records.eps == eps)]
    rows = rows[rows.units == "range"] if attack == "worst-case" else rows
    return shares(rows if loss is None else rows[rows.attack_loss == loss])


def strong_rows() -> list[str]:
    """What HR-trained networks keep more than CE-trained ones, and what is left."""
    rows = []
    for name, strengths in SHOWN.items():
        folder = FOLDERS[name]
        for eps in strengths:
            paper, worst = strong(folder, "fgm", "clipped-ce", eps), strong(folder, "worst-case", None, eps)
            gains = [found["HR(1.6)"] - found["CE"] for found in (paper, worst)]
            shown = (*gains, gains[0] - gains[1], worst["CE"], worst["HR(1.6)"])
            rows.append(f"| {name} | {eps:g} | " + " | ".join(map(interval, shown)) + " |")
    return rows


def test_readme_takes_what_is_real_from_the_published_records() -> None:
    assert "\n".join(strong_rows()) in README
    fgsm, transfer = (strong("strong-mnist", *attack, 0.2) for attack in (("fgm", "ce"), ("transfer", None)))
    worst = strong("strong-mnist", "worst-case", None, 0.2)["HR(1.6)"].mean()
    assert f"it leaves {interval(fgsm['HR(1.6)'])} to the HR-trained networks, and the worst case {worst:.3f}." in TEXT
    left = [interval(transfer[trained]) for trained in ("HR(1.6)", "CE")]
    assert f"at eps 0.2 they leave {left[0]}, and {left[1]} of the CE-trained." in TEXT
    assert f"for the worst case leaves {worst:.3f};" in TEXT
    for name in ("cifar10", "svhn_grey"):
        records = published(FOLDERS[name], "records.csv")
        clipped = records[(records.attack_loss == "clipped-ce") & (records.attack == "fgm")]
        zero = pd.to_numeric(clipped.zero_gradient)
        assert (zero < 0.001 * clipped.n).all()
        if name == "cifar10":
            assert (zero == 0).all()
        assert (strong(FOLDERS[name], "worst-case", None, 0.016).mean() <= 0.01).all()


def test_readme_tells_which_attackers_the_reports_flag() -> None:
    found = published("strong-digits", "diagnostics.csv")
    by_eps = found.assign(flagged=found.flag != "").groupby(["attacker", "trained", "eps", "seed"]).flagged.any()
    assert len(by_eps) == 2 * 2 * 4 * 5
    assert by_eps["paper", "HR(1.6)"].all()
    assert not by_eps["sound"].any()
    assert "it flags [all five HR-trained networks]" in TEXT
    mnist = published("strong-mnist", "diagnostics.csv")
    by_network = mnist.assign(flagged=mnist.flag != "").groupby(["attacker", "trained", "seed"]).flagged.any()
    assert by_network["paper"].sum() == 2 * 5
    assert not by_network["sound"].any()
    assert "on MNIST [all ten]" in TEXT


def test_readme_takes_what_hardening_adds_from_the_published_records() -> None:
    records = pd.read_csv(ROOT / "benchmarks/results/hardening-digits/records.csv")
    records["accuracy"] = records.correct / records.n

    def of(trained: str, attack: str, eps: float) -> pd.Series:
        rows = records[(records.trained == trained) & (records.attack == attack.split()[0]) & (records.eps == eps)]
        rows = rows if attack == "worst-case" else rows[rows.attack_loss == attack.split()[1]]
        return rows.set_index("seed").accuracy

    entries = (("fgm clipped-ce", 0.2), ("worst-case", 0.1), ("worst-case", 0.2))
    losses = ("CE", "CE, margin 14.5", "HR(1.6)")
    hardened = [f"{loss}, {kind} 0.1" for kind in ("Madry", "TRADES") for loss in ("CE", "HR(1.6)")]
    hardened = [f"{name}, beta 6" if "TRADES" in name else name for name in hardened]
    for trained in (*losses, *hardened, "HR(1.6), TRADES 0.1, beta 12"):
        row = " | ".join(interval(of(trained, *entry)) for entry in entries)
        assert f"| {trained} | {row} |" in README

    def gain(trained: str, ce: str, attack: str, eps: float) -> str:
        return interval(of(trained, attack, eps) - of(ce, attack, eps))

    paper, worst = ([gain(t, "CE", *entry) for t in losses[1:]] for entry in (entries[0], entries[2]))
    assert f"seems to gain {paper[0]} over CE at eps 0.2, where the HR loss gains {paper[1]}." in TEXT
    assert f"neither gains: {worst[0]} and {worst[1]}." in TEXT
    madry = [gain("HR(1.6), Madry 0.1", "CE, Madry 0.1", *entry) for entry in entries[1:]]
    assert f"is shown: {madry[0]} at eps 0.1, {madry[1]} at 0.2." in TEXT

    def by_trades(hr: int, ce: int) -> list[str]:
        names = f"HR(1.6), TRADES 0.1, beta {hr}", f"CE, TRADES 0.1, beta {ce}"
        return [gain(*names, *entry) for entry in entries[1:]]

    near, far = zip(*(by_trades(beta, beta) for beta in (3, 6, 12)), strict=True)
    assert f"the differences are {near[0]}, {near[1]} and {near[2]} at eps 0.1" in TEXT
    assert f"and {far[0]}, {far[1]} and {far[2]} at eps 0.2" in TEXT
    near, far = zip(*(by_trades(2 * beta, beta) for beta in (3, 6)), strict=True)
    assert f"it is {near[0]} and {near[1]} at eps 0.1, and {far[0]} and {far[1]} at 0.2." in TEXT
    smoothed = [interval(of("CE, smoothing 0.1", attack, 0.1)) for attack in ("fgm ce", "worst-case")]
    assert f"at eps 0.1 ({smoothed[0]}) and is little more than CE in the worst case ({smoothed[1]})" in TEXT


@pytest.mark.parametrize("name", SHOWN)
def test_published_gains_of_strong_attacks_are_those_of_the_published_records(name: str) -> None:
    folder = FOLDERS[name]
    worst = published(folder, "records.csv").query("attack == 'worst-case' and units == 'range'")
    broken = published(folder, "broken_by.csv")
    lost = broken[broken.units == "range"].groupby(["trained", "seed", "eps"]).broken.sum()
    counts = worst.set_index(["trained", "seed", "eps"])
    assert (counts.n - counts.correct == lost.reindex(counts.index)).all()
    text = (ROOT / "benchmarks/results" / folder / "strong.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    eps, found = "", {}
    for row in rows[2:]:
        eps = row[0].strip() or eps
        found[float(eps), row[1].strip()] = row[-1].strip()
    assert set(SHOWN[name]) < {at for at, _ in found}
    for at, trained in found:
        left = strong(folder, "worst-case", None, at)
        values = left["HR(1.6)"] - left["CE"] if " - " in trained else left[trained]
        assert found[at, trained] == interval(values)
