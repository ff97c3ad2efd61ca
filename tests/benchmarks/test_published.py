"""Published tables agree with the records beside them, and README's headline is a published one."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks/results"


def folders(table: str) -> list[str]:
    """Published folders that have a table."""
    return sorted(path.parent.name for path in RESULTS.glob(f"*/{table}"))


def frame(folder: str, name: str) -> pd.DataFrame:
    """A published csv file, without missing values: an empty cell is an empty string."""
    return pd.read_csv(RESULTS / folder / name, keep_default_na=False)


def rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of the first table of a Markdown file by column; an empty first cell repeats the one above."""
    table = next(block for block in path.read_text().split("\n\n") if block.startswith("|"))
    header, _, *body = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    first = ""
    for row in body:
        first = row[0] or first
        yield dict(zip(header, [first, *row[1:]], strict=True))


def records_on_test_images(folder: str) -> pd.DataFrame:
    """Records on test images with their accuracy."""
    records = frame(folder, "records.csv")
    records = records[records.split == "test"]
    range_of_pixels = 255 if folder.endswith("svhn-grey") else 1
    return records.assign(
        accuracy=records.correct / records.n,
        zero=pd.to_numeric(records.zero_gradient, errors="coerce"),
        share=records.eps / records.units.map({"data": range_of_pixels, "range": 1}),
    )


def interval(values: pd.Series) -> str:
    """Mean and half-width of the 95% t interval over seeds, as tables print them."""
    half_width = scipy.stats.t.ppf(0.975, len(values) - 1) * values.sem()
    return f"{values.mean():z.3f} ± {half_width:.3f}"


def at(records: pd.DataFrame, eps: str, units: str = "share") -> pd.DataFrame:
    """Records at an eps as tables print it, such as 0.1 or 4/255: a share of the pixel range, or in other units."""
    numerator, _, denominator = eps.partition("/")
    return records[np.isclose(records[units], float(numerator) / float(denominator or 1), rtol=1e-3)]


def number(text: str) -> str:
    """An entry's mean and interval, without sign, mark and the share in brackets."""
    return re.sub(r"[†‡].*| \(.*", "", text).removeprefix("+")


def fgsm(records: pd.DataFrame, protocol: str, by: str) -> pd.DataFrame:
    """Records of Table 1's attack in a protocol along one loss, CE or HR, on all images or on those that there are."""
    losses = {"paper": ("clipped-ce", "clipped-hr"), "torch's CE": ("torch-ce", "")}
    loss = losses.get(protocol, ("ce", "hr"))[by == "HR"]
    units = "data" if protocol == "paper" else "range"
    return records[(records.attack == "fgm") & (records.attack_loss == loss) & (records.units == units)]


def by_seed(records: pd.DataFrame, trained: str) -> pd.Series:
    """Accuracy by seed of networks trained with one loss."""
    chosen = records[records.trained == trained].set_index("seed").accuracy
    assert chosen.index.is_unique
    return chosen.sort_index()


def gain(records: pd.DataFrame, hr: str, ce: str) -> pd.Series:
    """Accuracy of HR-trained networks less that of CE-trained ones of the same seed."""
    return by_seed(records, hr) - by_seed(records, ce)


@pytest.mark.parametrize("folder", folders("table_1.md"))
def test_every_entry_of_a_published_table_1_is_that_of_its_records(folder: str) -> None:
    records, checked = records_on_test_images(folder), 0
    whole = records[records.images == 0]
    for row in rows(RESULTS / folder / "table_1.md"):
        protocol, eps = row["protocol"], float(row["eps"])  # in the units of its protocol
        for column in list(row)[2:]:
            if protocol == "printed" or not row[column]:
                continue
            trained, by = re.fullmatch(r"(.*) trained, (CE attack|HR attack|worst case)", column).groups()
            if by == "worst case":
                units = "data" if protocol == "paper" else "range"
                chosen = records[(records.attack == "worst-case") & (records.units == units)]
            elif protocol == "no attack":
                chosen = whole[whole.attack == "none"]
            else:
                chosen = fgsm(whole, protocol, by.split()[0])
            chosen = chosen[(chosen.eps == eps) & (chosen.trained == trained)]
            assert set(chosen.seed) == set(records.seed)
            expected = interval(by_seed(chosen, trained))
            if by != "worst case" and eps:
                zero = chosen.zero.sum() / chosen.n.sum()
                expected += ("†" if zero > 0.001 else "") + f" ({zero:.1%})"
            assert row[column] == expected
            checked += 1
    assert checked >= 10


@pytest.mark.parametrize("folder", folders("strong.md"))
def test_every_worst_case_of_a_published_table_is_that_of_its_records(folder: str) -> None:
    records = records_on_test_images(folder)
    worst = records[(records.attack == "worst-case") & (records.units == "range")]
    checked = 0
    for row in rows(RESULTS / folder / "strong.md"):
        chosen = at(worst, row["eps"])
        hr, _, ce = row["trained"].partition(" - ")
        hr = "HR(1.6)" if hr == "HR" else hr
        values = gain(chosen, hr, ce) if ce else by_seed(chosen, hr)
        assert number(row["worst case"]) == interval(values)
        checked += 1
    assert checked


@pytest.mark.parametrize("folder", folders("broken_by.csv"))
def test_misclassified_images_are_divided_among_the_attacks_that_found_them(folder: str) -> None:
    records = records_on_test_images(folder)
    keys = ["trained", "seed", "eps", "units"]
    lost = frame(folder, "broken_by.csv").groupby(keys).broken.sum()
    worst = records[records.attack == "worst-case"].set_index(keys)
    assert (worst.n - worst.correct == lost.reindex(worst.index)).all()


@pytest.mark.parametrize("folder", folders("claims.csv"))
def test_every_published_verdict_follows_from_its_effect(folder: str) -> None:
    limits = {"C6": -0.01, "C7": -0.05}
    for row in frame(folder, "claims.csv").itertuples():
        if row.verdict == "no claim" or row.effect == "" or row.pairs < 2:
            continue
        # C7 is a cost, and C3 says that on MNIST the CE attack, and elsewhere the HR attack, leaves less.
        sign = -1 if row.claim == "C7" or (row.claim == "C3" and row.dataset == "mnist") else 1
        effect, half_width = sign * float(row.effect), float(row.half_width_95)
        low, high = effect - half_width, effect + half_width
        limit = limits.get(row.claim, 0.0)
        expected = "supported" if low > limit else "contradicted" if high < limit else "undecided"
        assert row.verdict == expected, row


@pytest.mark.parametrize("folder", folders("claims.csv"))
def test_published_effects_on_accuracy_are_those_of_the_records(folder: str) -> None:
    records, checked = records_on_test_images(folder), 0
    claims = frame(folder, "claims.csv")
    for row in claims[claims.claim.isin(["C1", "C2"]) & (claims.effect != "")].itertuples():
        hr, *where = row.where.split(", ")
        if where == ["no attack"]:
            chosen = records[(records.attack == "none") & (records.images == 0)]
        else:
            *by, eps, protocol = where
            if protocol == "worst case":
                chosen = records[records.attack == "worst-case"]
            else:
                chosen = fgsm(records[records.images == 0], protocol, by[0].split()[0])
            chosen = at(chosen, eps.removeprefix("eps "), "eps" if protocol == "paper" else "share")
        expected = interval(gain(chosen, hr, "CE"))
        assert f"{float(row.effect):z.3f} ± {float(row.half_width_95):.3f}" == expected
        checked += 1
    assert checked


@pytest.mark.parametrize("folder", folders("hardening.md"))
def test_worst_cases_of_published_defences_are_those_of_the_records(folder: str) -> None:
    worst = records_on_test_images(folder).query("attack == 'worst-case'")
    checked = 0
    for row in rows(RESULTS / folder / "hardening.md"):
        defence = row.get("defence") or row["hardening"]  # the older edition calls it hardening
        names = (row["trained"], f"{row['trained']}, {defence}")
        trained = next(name for name in reversed(names) if name in set(worst.trained))
        for column, text in row.items():
            if match := re.fullmatch(r"eps (.*): worst case", column):
                assert number(text) == interval(by_seed(worst[worst.eps == float(match[1])], trained))
                checked += 1
    assert checked


@pytest.mark.parametrize("folder", folders("headline.md"))
def test_a_published_headline_is_that_of_its_records(folder: str) -> None:
    records, checked = records_on_test_images(folder), 0
    worst = records[(records.attack == "worst-case") & (records.units == "range")]
    attacks = {
        "no attack": records[records.attack == "none"],
        "FGSM, exact": records[(records.attack == "fgm") & (records.attack_loss == "ce")],
        "worst case": worst,
    }
    for row in rows(RESULTS / folder / "headline.md"):
        if row["attack"] in attacks:
            chosen = at(attacks[row["attack"]], row["eps"])
            # The images are those of the worst case where the attack was evaluated on them, else all.
            chosen = chosen[chosen.images == max(set(chosen.images) & {0, *worst.images})]
            ce, hr, paired = list(row)[2:]
            assert [row[name] for name in (ce, hr)] == [interval(by_seed(chosen, name)) for name in (ce, hr)]
            assert number(row[paired]) == interval(gain(chosen, hr, ce))
            checked += 1
    assert checked


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*.md")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_mark_in_a_published_table_has_its_note(path: Path) -> None:
    text = path.read_text()
    for mark in "†‡":
        assert (mark in text) == any(line.startswith(mark) for line in text.splitlines())


@pytest.mark.parametrize(
    "path",
    sorted(path for path in RESULTS.glob("*/*.md") if path.parent.name != "gpu-h200"),
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_every_published_table_names_its_command(path: Path) -> None:
    assert re.search(r"Made by `python -m benchmarks ", path.read_text())


def test_readme_shows_a_published_headline() -> None:
    path, shown = re.search(r"<!-- begin (\S+) -->\n(.*?)\n<!-- end -->", README, re.DOTALL).groups()
    assert shown == (ROOT / path).read_text().strip()
