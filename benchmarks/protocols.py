"""What networks are trained with and attacked by: the losses, and the attacks of the two protocols and beyond."""

from dataclasses import replace
from typing import Literal

from benchmarks.config import AttackSpec, Hardening, LossSpec, Reference, SplitName, UnitsName

CE = LossSpec("ce")
HR = LossSpec("hr", alpha=1.6)

EPS = (0.1, 0.25)


def exact(loss: Literal["ce", "hr"], eps: float, split: SplitName = "test") -> AttackSpec:
    """The exact-gradient protocol: FGSM along that of the per-example loss; eps is a share of the pixel range."""
    return AttackSpec("fgm", loss, eps, split=split) if eps else AttackSpec("none", split=split)


def torch_ce(eps: float) -> AttackSpec:
    """The exact-gradient protocol but for its numerics: torch's own float32 cross-entropy."""
    return AttackSpec("fgm", "torch-ce", eps)


def paper(loss: Literal["ce", "hr"], eps: float, split: SplitName = "test") -> AttackSpec:
    """The paper protocol as we read it: FGSM through clipped probabilities; eps in units of the network's input."""
    return AttackSpec("fgm", "clipped-ce" if loss == "ce" else "clipped-hr", eps, units="data", split=split)


def protocol(attack: AttackSpec) -> tuple[str, str]:
    """
    Return the protocol of an attack and its attacker: what rows and columns are called, and nowhere else decided.

    The attacker is the loss whose gradient drives the attack; of a report on masked gradients it is the protocol.

    >>> protocol(paper("hr", 0.1))
    ('paper', 'HR')
    >>> protocol(AttackSpec("apgd", "margin", 0.1, steps=5))
    ('Auto-PGD', 'margin')
    """
    loss = attack.loss or ""
    attacker, clipped = _ATTACKERS.get(loss, loss), loss.startswith("clipped-")
    if attack.name == "fgm":
        base = loss.removeprefix("clipped-").removeprefix("torch-")
        name = "torch's CE" if loss == "torch-ce" else "exact"
        name = ("paper" if attack.units == "data" else "clipped") if clipped else name
        name += "" if attack.clip else ", images not clipped"
        return name, _ATTACKERS.get(base, base)
    if attack.name == "diagnostics":
        return "report", "paper" if clipped else "exact" if loss == "ce" else attacker
    return "own attack" if isinstance(attack.name, Reference) else _PROTOCOLS.get(attack.name, attack.name), attacker


def eps_text(eps: float) -> str:
    """
    An eps as it is shown: in levels of a pixel where its decimals are long.

    >>> eps_text(0.25), eps_text(2 / 255), eps_text(0.1 / 255)
    ('0.25', '2/255', '0.1/255')
    """
    text, levels = f"{eps:g}", f"{round(255 * eps, 6):g}"
    return f"{levels}/255" if len(levels) + 2 < len(text) else text


_ATTACKERS = {"ce": "CE", "hr": "HR", "dlr": "DLR"}
_PROTOCOLS = {
    "none": "no attack",
    "pgd": "PGD",
    "apgd": "Auto-PGD",
    "square": "Square",
    "worst-case": "worst case",
}
# The protocols and attackers beside which Proposition 1 is shown.
BOUNDED = (("no attack", ""), ("exact", "CE"))

# Table 1 of the paper: no attack, and both losses as the attacker's, at both strengths, in both protocols. And the
# validation images without attack, to which temperatures are fitted.
TABLE_1_ATTACKS = (
    AttackSpec("none"),
    *(exact(loss, eps) for loss in ("ce", "hr") for eps in EPS),
    *(torch_ce(eps) for eps in EPS),
    *(paper(loss, eps) for loss in ("ce", "hr") for eps in EPS),
    exact("ce", 0.0, "validation"),
)
# The strong attacks go on to where nothing stands. Photographs bear far less.
STRONG_EPS = (0.1, 0.15, 0.2, 0.25)
STRONG_EPS_OF_PHOTOGRAPHS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
# TRADES's authors take 6; but what it multiplies is weighed against the loss, and losses differ in size.
TRADES_BETAS = (3.0, 6.0, 12.0)
# Of the reports on masked gradients: images, and steps of projected gradient descent.
REPORT_IMAGES, REPORT_STEPS = 100, 25
# Fig. 1 has the cross-entropy attack alone.
FIGURE_1_ATTACKS = (
    AttackSpec("none"),
    *(protocol("ce", eps) for protocol in (exact, paper) for eps in EPS),
)
# The alphas that are tried, alpha = 1 being the limit H + KL, and the attacks: in each protocol alpha is chosen on
# validation images, and the choice shown on test images.
ALPHAS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0)
ALPHA_ATTACKS = (
    *(exact("ce", eps, split) for split in ("validation", "test") for eps in (0.0, *EPS)),
    *(paper("ce", eps, split) for split in ("validation", "test") for eps in EPS),
)


def strong(eps: float, images: int, steps: int) -> tuple[AttackSpec, ...]:
    """
    From the paper's attack to the worst case, on the same images, with eps as a share of the pixel range.

    FGSM through clipped probabilities and exact, and the worst case of the ensemble.
    """
    return (
        AttackSpec("fgm", "clipped-ce", eps, images=images),
        replace(exact("ce", eps), images=images),
        worst_case(eps, images, steps),
    )


def worst_case(eps: float, images: int, steps: int, units: UnitsName = "range") -> AttackSpec:
    """
    The worst case of the ensemble of art_hrloss.

    Without images made on another network, and without HopSkipJump: when these grids had both, on 91,000 images, of all
    networks and eps together, they found 3 and 0 that the white-box attacks before them had not.
    """
    return AttackSpec("worst-case", eps=eps, units=units, steps=steps, images=images)


def diagnostics(eps: float) -> tuple[AttackSpec, ...]:
    """Reports on masked gradients, of the paper's attacker and of the exact one."""
    report = AttackSpec("diagnostics", "ce", eps, steps=REPORT_STEPS, images=REPORT_IMAGES)
    return replace(report, loss="clipped-ce"), report


def hardened(kind: Hardening | None, alphas: tuple[float, ...]) -> tuple[LossSpec, ...]:
    """Cross-entropy, and the HR loss at each alpha, hardened alike."""
    losses = (CE, *(LossSpec("hr", alpha) for alpha in alphas))
    return tuple(replace(loss, hardening=kind) for loss in losses)


def hardening_attacks(strengths: tuple[float, ...], images: int, steps: int) -> tuple[AttackSpec, ...]:
    """Of the strong attacks those that tell masking from robustness: FGSM in both protocols, and the worst case."""
    attacks = (attack for eps in strengths for attack in strong(eps, images, steps))
    return AttackSpec("none", images=images), *attacks
