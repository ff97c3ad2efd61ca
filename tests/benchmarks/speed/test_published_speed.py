"""What README says of speed is what the published readings say."""

from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()


def speed_rows() -> list[str]:
    """The tables of README's section on speed, from the published readings."""
    loss, attacks = (pd.read_csv(ROOT / f"benchmarks/results/speed/{part}.csv") for part in ("loss", "attacks"))

    def shown(readings: pd.DataFrame, case: str, contender: str, quantity: str, against: str | None) -> str:
        rows = readings[(readings.case == case) & (readings.contender == contender) & (readings.quantity == quantity)]
        found = rows[rows.against.isna() if against is None else rows.against == against]
        if not len(found):
            return "-"
        values = found[["median", "lower", "upper"]].to_numpy()[0]
        return f"{values[0]:.2f}" if found.n.item() == 1 else "{:.2f} [{:.2f}, {:.2f}]".format(*values)

    rows = []
    for case in (case.removesuffix(", 1 thread") for case in loss.case.unique() if case.endswith(", 1 thread")):
        entries = [
            shown(loss, f"{case}, {place}", f"HR, {how}", "ratio", f"CE, {how}")
            for how, place in (("eager", "1 thread"), ("eager", "2 threads"), ("compiled", "1 thread"))
        ]
        memory = (
            shown(loss, f"{case}, 1 thread", name, "peak memory / logits", None) for name in ("HR, eager", "CE, eager")
        )
        rows.append(f"| {case} | " + " | ".join([*entries, *memory]) + " |")
    for case in attacks.case.unique():
        hand = "loop by hand, {}"
        pairs = [("art_hrloss, HR", "HR"), ("art_hrloss, CE", "CE"), ("ART, PyTorchClassifier, CE", "CE")]
        pairs += [("Foolbox, CE", "CE"), ("torchattacks, CE", "CE")]
        entries = [shown(attacks, case, name, "ratio", hand.format(which)) for name, which in pairs]
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
    pools = training[training.contender == "pool of processes"].set_index("x")["median"]
    assert f"Two workers do the runs of one in {pools[2] / pools[1]:.2f} of its time" in text


def test_readme_takes_what_is_fast_from_the_published_readings() -> None:
    rows = speed_rows()
    assert len(rows) == 14 + 8
    for row in rows:
        assert row in README
    for part, seconds in (("loss", 5.0), ("attacks", 200.0), ("growth", 5.0)):
        text = (ROOT / f"benchmarks/results/speed/{part}.md").read_text()
        command = f"python -m benchmarks speed --output benchmarks/results/speed --seconds {seconds} --part {part}"
        assert f"Made by `{command}`" in text
        assert "WARNING" not in text
    text = " ".join(README.split())
    growth = pd.read_csv(ROOT / "benchmarks/results/speed/growth.csv")
    ratios = growth[growth.quantity == "ratio"].set_index(["case", "x"])["median"]
    by_batch, by_classes = ratios["batch (10 classes)"], ratios["classes (batch 128)"]
    assert f"takes {by_batch[1024]:.2f} of the time for 1024 examples and {by_batch[8192]:.2f} for 8192" in text
    assert f"10,000 classes {by_classes[10_000]:.2f}, and {by_classes[50_000]:.2f} with 50,000" in text
