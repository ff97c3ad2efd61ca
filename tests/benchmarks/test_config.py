"""Specifications: keys that never change, validation of every field, and names."""

import hashlib
import json
import re
from dataclasses import dataclass, replace

import pytest

from benchmarks import grids
from benchmarks.config import AttackSpec, ConfigError, Hardening, LossSpec, Recipe, RunSpec, canonical

RECIPE = Recipe(model="lenet", epochs=2, batch_size=10, lr=0.1)
RUN = RunSpec("mnist", RECIPE, LossSpec("hr", 1.6), seed=3)
FGM = AttackSpec("fgm", "hr", 0.1)
NOISE, MADRY, TRADES = Hardening("noise", 0.1), Hardening("madry", 0.1, 7), Hardening("trades", 0.1, 7, beta=6.0)


def with_recipe(**changes) -> RunSpec:
    return replace(RUN, recipe=replace(RECIPE, **changes))


def test_the_key_of_a_run_is_constant() -> None:
    # The expected value is a constant: if it changes, no stored result of a user is found any more.
    assert RUN.key() == "7c8dea85c4df8452"


def test_the_key_of_a_run_with_every_kind_of_field_is_the_hash_of_its_canonical_json() -> None:
    run = with_recipe(lr_drops=((1, 0.5),), input_scale=255, device="gpu", curve_every=2, curve_attacks=(FGM,))
    text = (
        '{"run":{"dataset":"mnist","loss":{"alpha":1.6,"name":"hr"},"recipe":{"batch_size":10,'
        '"curve_attacks":[{"eps":0.1,"loss":"hr","name":"fgm"}],"curve_every":2,"device":"gpu","epochs":2,'
        '"input_scale":255.0,"lr":0.1,"lr_drops":[[1,0.5]],"model":"lenet"},"seed":3},"version":1}'
    )
    assert run.key() == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert canonical(run) == json.loads(text)["run"]


@pytest.mark.parametrize(
    "other",
    [
        replace(RUN, dataset="digits"),
        replace(RUN, seed=4),
        replace(RUN, loss=LossSpec("ce")),
        replace(RUN, loss=LossSpec("hr", 1.7)),
        with_recipe(lr=0.2),
        with_recipe(lr_drops=((1, 0.1),)),
        # 0 where the default is another value: it must not be treated as the default.
        with_recipe(split_seed=0),
        with_recipe(threads=2),
        with_recipe(device="gpu"),
        with_recipe(input_scale=255.0),
        with_recipe(curve_every=1, curve_attacks=(FGM,)),
        replace(RUN, loss=replace(RUN.loss, label_smoothing=0.1)),
        replace(RUN, loss=replace(RUN.loss, margin=3.0)),
        replace(RUN, loss=replace(RUN.loss, hardening=NOISE)),
    ],
    ids=[
        "dataset",
        "seed",
        "loss",
        "alpha",
        "lr",
        "lr_drops",
        "split_seed",
        "threads",
        "device",
        "scale",
        "curve",
        "smoothing",
        "margin",
        "noise",
    ],
)
def test_every_field_of_a_run_changes_its_key(other: RunSpec) -> None:
    assert other.key() != RUN.key()


def test_curve_interval_and_curve_attacks_are_part_of_the_key() -> None:
    curve = {"curve_every": 1, "curve_attacks": (FGM,)}
    runs = [
        with_recipe(**curve),
        with_recipe(**{**curve, "curve_every": 2}),
        with_recipe(**{**curve, "curve_attacks": (replace(FGM, eps=0.2),)}),
        with_recipe(**{**curve, "curve_attacks": (replace(FGM, units="data"),)}),
        with_recipe(**{**curve, "curve_attacks": (replace(FGM, split="validation"),)}),
    ]
    assert len({run.key() for run in runs}) == len(runs)


def test_every_field_of_a_hardening_changes_the_key() -> None:
    kinds = (None, NOISE, MADRY, TRADES, replace(MADRY, eps=0.2), replace(MADRY, steps=8), replace(TRADES, beta=1.0))
    runs = [replace(RUN, loss=replace(RUN.loss, hardening=kind)) for kind in kinds]
    assert len({run.key() for run in runs}) == len(runs)
    assert runs[0].key() == RUN.key(), "no hardening changes no key"


INTEGERS_AND_FLOATS = [
    pytest.param(with_recipe(lr=1), with_recipe(lr=1.0), id="lr"),
    pytest.param(with_recipe(momentum=1), with_recipe(momentum=1.0), id="momentum"),
    pytest.param(with_recipe(l2=1), with_recipe(l2=1.0), id="l2"),
    pytest.param(with_recipe(input_scale=255), with_recipe(input_scale=255.0), id="input_scale"),
    pytest.param(with_recipe(lr_drops=[(1, 2)]), with_recipe(lr_drops=((1, 2.0),)), id="lr_drops"),
    pytest.param(replace(RUN, loss=LossSpec("hr", 2)), replace(RUN, loss=LossSpec("hr", 2.0)), id="alpha"),
    pytest.param(
        replace(RUN, loss=replace(RUN.loss, label_smoothing=0, margin=3, hardening=replace(TRADES, eps=1, beta=2))),
        replace(RUN, loss=replace(RUN.loss, margin=3.0, hardening=replace(TRADES, eps=1.0, beta=2.0))),
        id="hardening",
    ),
    pytest.param(
        with_recipe(curve_every=1, curve_attacks=(replace(FGM, eps=1),)),
        with_recipe(curve_every=1, curve_attacks=(replace(FGM, eps=1.0),)),
        id="eps",
    ),
]


@pytest.mark.parametrize(("integer", "floating"), INTEGERS_AND_FLOATS)
def test_an_integer_and_the_equal_float_have_the_same_key(integer: RunSpec, floating: RunSpec) -> None:
    assert integer.key() == floating.key()
    assert integer == floating
    assert json.dumps(canonical(integer)) == json.dumps(canonical(floating))


def test_an_integer_equal_to_a_float_default_is_the_default() -> None:
    assert with_recipe(momentum=0, l2=0, input_scale=1).key() == RUN.key()
    assert AttackSpec("fgm", "ce", 1).key() == AttackSpec("fgm", "ce", 1.0).key() == "fgm-ce-1.0"


def test_a_field_added_later_at_its_default_changes_no_key() -> None:
    @dataclass(frozen=True)
    class LossSpecWithNewField(LossSpec):
        temperature: float = 1.0

    assert canonical(LossSpecWithNewField("hr", 1.6)) == canonical(LossSpec("hr", 1.6))
    assert canonical(LossSpecWithNewField("hr", 1.6, temperature=2.0)) != canonical(LossSpec("hr", 1.6))


def test_the_learning_rate_follows_the_drops_in_any_order() -> None:
    recipe = replace(RECIPE, lr=1.0, lr_drops=((120, 0.01), (80, 0.1)))
    assert [recipe.lr_at(epoch) for epoch in (0, 79, 80, 119, 120, 500)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_attack_keys_are_file_names_and_differ_by_eps_images_and_steps() -> None:
    keys = [AttackSpec("fgm", "hr", eps).key() for eps in (0.1, 0.1000001, 0.25)]
    keys += [replace(FGM, images=images).key() for images in (1, 10)]
    keys += [AttackSpec(name, "hr", 0.1, steps=steps).key() for name in ("pgd", "apgd") for steps in (1, 10)]
    keys += [AttackSpec("worst-case", eps=eps, steps=10).key() for eps in (0.1, 0.2)]
    assert keys[-1] == "worst-case-2-0.2-10-steps"
    assert AttackSpec("none", images=7).key() == "none-first-7"
    assert len(set(keys)) == len(keys) == 11
    assert keys[0] == "fgm-hr-0.1"


def test_attack_keys_differ_by_source() -> None:
    transfers = [AttackSpec("transfer", eps=0.1, steps=5, source=source) for source in (0, 1)]
    cases = [AttackSpec("worst-case", eps=0.1, steps=5, source=source) for source in (None, 0, 1)]
    others = [AttackSpec("square", eps=0.1, steps=5), AttackSpec("diagnostics", "ce", 0.1, steps=5)]
    assert transfers[0].key() == "transfer-0.1-5-steps-source-0"
    assert cases[0].key() == "worst-case-2-0.1-5-steps"
    assert len({spec.key() for spec in (*transfers, *cases, *others)}) == 7


def test_a_source_is_a_plain_cross_entropy_run_of_the_same_recipe() -> None:
    hardened = replace(RUN, loss=LossSpec("hr", 1.6, label_smoothing=0.1, margin=2.0, hardening=MADRY))
    assert hardened.source(9) == RunSpec("mnist", RECIPE, LossSpec("ce"), 9)


@pytest.mark.parametrize(
    ("loss", "text", "plain"),
    [
        (LossSpec("ce"), "CE", True),
        (LossSpec("hr", 1.6), "HR(1.6)", True),
        (LossSpec("ce", label_smoothing=0.1), "CE, smoothing 0.1", False),
        (LossSpec("ce", margin=14.5), "CE, margin 14.5", False),
        (LossSpec("hr", 3, hardening=NOISE), "HR(3), noise 0.1", False),
        (LossSpec("ce", hardening=MADRY), "CE, Madry 0.1", False),
        (LossSpec("hr", 1, 0.1, 2, TRADES), "HR(1), smoothing 0.1, margin 2, TRADES 0.1, beta 6", False),
    ],
    ids=str,
)
def test_the_text_of_a_loss_names_everything_that_defines_it(loss: LossSpec, text: str, plain: bool) -> None:
    assert (str(loss), loss.plain) == (text, plain)


def test_attack_keys_differ_by_units_and_split() -> None:
    specs = [replace(FGM, units=units, split=split) for units in ("range", "data") for split in ("test", "validation")]
    assert [spec.key() for spec in specs] == [
        "fgm-hr-0.1",
        "validation-fgm-hr-0.1",
        "fgm-hr-0.1-data",
        "validation-fgm-hr-0.1-data",
    ]
    assert [AttackSpec("none", split=split).key() for split in ("test", "validation")] == ["none", "validation-none"]


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        (lambda: LossSpec("mse"), "loss", "'mse'"),
        (lambda: LossSpec("hr"), "alpha", "hr, None"),
        (lambda: LossSpec("ce", 1.6), "alpha", "ce, 1.6"),
        (lambda: LossSpec("hr", -1.0), "alpha", "-1.0"),
        (lambda: replace(RECIPE, model="vgg"), "model", "'vgg'"),
        (lambda: replace(RECIPE, optimizer="lion"), "optimizer", "'lion'"),
        (lambda: replace(RECIPE, epochs=0), "epochs", "0"),
        (lambda: replace(RECIPE, lr=float("nan")), "lr", "nan"),
        (lambda: replace(RECIPE, momentum=-0.1), "momentum", "-0.1"),
        (lambda: AttackSpec("fgm"), "loss", "None"),
        (lambda: AttackSpec("fgm", "hr", 0.0), "eps", "0.0"),
        (lambda: AttackSpec("none", "ce"), "loss", ""),
        (lambda: AttackSpec("none", eps=0.1), "loss", ""),
        (lambda: AttackSpec("none", units="data"), "loss", ""),
        (lambda: AttackSpec("bim", "ce", 0.1), "attack", "'bim'"),
        (lambda: AttackSpec("pgd", "ce", 0.1), "steps", "0"),
        (lambda: AttackSpec("pgd", "ce", 0.1, steps=-1), "steps", "-1"),
        (lambda: AttackSpec("apgd", "ce", 0.1, steps=1.5), "steps", "1.5"),
        (lambda: replace(FGM, steps=3), "steps", "3"),
        (lambda: AttackSpec("none", steps=3), "steps", "3"),
        (lambda: AttackSpec("worst-case", "ce", 0.1, steps=3), "loss", "'ce'"),
        (lambda: AttackSpec("pgd", "ce", 0.1, steps=3, clip=False), "clip", "False"),
        (lambda: AttackSpec("worst-case", steps=3), "eps", "0.0"),
        (lambda: AttackSpec("square", "ce", 0.1, steps=3), "loss", "'ce'"),
        (lambda: AttackSpec("diagnostics", eps=0.1, steps=3), "loss", "None"),
        (lambda: AttackSpec("square", eps=0.1), "steps", "0"),
        (lambda: AttackSpec("transfer", eps=0.1, steps=3), "source", "None"),
        (lambda: replace(FGM, source=1), "source", "1"),
        (lambda: AttackSpec("none", source=1), "source", "1"),
        (lambda: AttackSpec("transfer", eps=0.1, steps=3, source=-1), "source", "-1"),
        (lambda: AttackSpec("transfer", eps=0.1, steps=3, source=True), "source", "True"),
        (lambda: Hardening("pgd", 0.1), "hardening", "'pgd'"),
        (lambda: Hardening("noise", 0.0), "eps", "0.0"),
        (lambda: Hardening("madry", float("nan"), 7), "eps", "nan"),
        (lambda: Hardening("noise", 1.5), "eps", "1.5"),
        (lambda: LossSpec("ce", hardening="madry"), "hardening", "'madry'"),
        (lambda: AttackSpec("diagnostics", "ce", 0.1, units="data", steps=5), "units", "data"),
        (
            lambda: replace(grids.digits(), attacks=(AttackSpec("transfer", eps=0.1, steps=2, source=1),)),
            "sources",
            "the seeds {1}",
        ),
        (
            lambda: replace(grids.digits(), losses=[LossSpec("ce", hardening=replace(MADRY, steps=n)) for n in (1, 2)]),
            "losses",
            "",
        ),
        (lambda: Hardening("noise", 0.1, 7), "steps", "7"),
        (lambda: Hardening("madry", 0.1), "steps", "0"),
        (lambda: Hardening("madry", 0.1, 1.5), "steps", "1.5"),
        (lambda: Hardening("trades", 0.1, 7), "beta", "0.0"),
        (lambda: Hardening("madry", 0.1, 7, 6.0), "beta", "6.0"),
        (lambda: LossSpec("ce", label_smoothing=1.0), "label_smoothing", "1.0"),
        (lambda: LossSpec("ce", label_smoothing=-0.1), "label_smoothing", "-0.1"),
        (lambda: LossSpec("ce", margin=-1.0), "margin", "-1.0"),
        (lambda: LossSpec("ce", margin=float("inf")), "margin", "inf"),
        (lambda: replace(FGM, images=-1), "images", "-1"),
        (lambda: replace(FGM, images=True), "images", "True"),
        (lambda: replace(FGM, units="pixels"), "units", "'pixels'"),
        (lambda: replace(FGM, split="train"), "split", "'train'"),
        (lambda: replace(RECIPE, device="tpu"), "device", "'tpu'"),
        (lambda: replace(RECIPE, input_scale=0), "input_scale", "0.0"),
        (lambda: replace(RECIPE, input_scale=-1.0), "input_scale", "-1.0"),
        (lambda: replace(RECIPE, input_scale=float("nan")), "input_scale", "nan"),
        (lambda: replace(RECIPE, threads=0), "threads", "0"),
        (lambda: replace(RECIPE, l2=-1e-4), "l2", "-0.0001"),
        (lambda: replace(RECIPE, curve_every=-1, curve_attacks=(FGM,)), "curve_every", "-1"),
        (lambda: replace(RECIPE, curve_every=0.5, curve_attacks=(FGM,)), "curve_every", "0.5"),
        (lambda: replace(RECIPE, curve_every=5), "curve_every", "5 and ()"),
        (lambda: replace(RECIPE, curve_attacks=(FGM,)), "curve_every", ""),
        (lambda: replace(grids.digits(), seeds=()), "seeds", "()"),
        (lambda: replace(grids.digits(), seeds=(1, 1)), "seeds", "(1, 1)"),
        (lambda: replace(RECIPE, lr=float("inf")), "lr", "inf"),
        (lambda: replace(RECIPE, epochs=1.5), "epochs", "1.5"),
        (lambda: AttackSpec("fgm", "hr", float("inf")), "eps", "inf"),
        (
            lambda: replace(grids.digits(), recipes=(("digits", RECIPE), ("digits", replace(RECIPE, lr=1.0)))),
            "data sets",
            "['digits', 'digits']",
        ),
        (lambda: replace(grids.digits(), attacks=()), "attacks", "()"),
        (lambda: replace(grids.digits(), losses=(LossSpec("hr", 2), LossSpec("hr", 2.0))), "losses", ""),
    ],
)
def test_an_invalid_specification_is_refused_with_field_and_value_named(make, field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^expected .*\b{field}\b.*, but got .*{re.escape(value)}"):
        make()


@pytest.mark.parametrize("name", ["a", "x1", "mnist-short", "mnist.v1.2", "alpha_1.6", "0-lr_0.5.b", "a..b", "A_"])
def test_a_grid_name_may_have_dots_dashes_and_underscores(name: str) -> None:
    assert replace(grids.digits(), name=name).name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "x/..",
        "a/b",
        "/a",
        "a\\b",
        ".a",
        "a.",
        "-a",
        "a-",
        "_a",
        "a b",
        "a\n",
        "\na",
        "a:b",
    ],
)
def test_a_grid_name_that_is_not_a_plain_folder_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"a grid's name .*, but got {re.escape(repr(name))}"):
        replace(grids.digits(), name=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_drops": ((-1, 0.1),)}, "expected lr_drops"),
        ({"lr_drops": ((1, 0.0),)}, "expected lr_drops"),
        ({"lr_drops": ((1, 0.1), (1, 0.2))}, "expected lr_drops"),
        ({"subtract_pixel_mean": 1}, "expected subtract_pixel_mean to be True or False, but got 1"),
        ({"curve_every": 1, "curve_attacks": [AttackSpec("none")]}, "expected curve_attacks to be a tuple"),
        ({"curve_every": 1, "curve_attacks": (AttackSpec("none"),) * 2}, "expected curve_attacks to be a tuple"),
    ],
    ids=["epoch", "factor", "twice", "no bool", "list", "same attack"],
)
def test_an_invalid_recipe_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe(model="small-cnn", epochs=1, batch_size=1, lr=0.1, **changes)


def test_the_same_drops_in_another_order_have_the_same_key() -> None:
    drops = [((1, 0.1), (2, 0.01)), ((2, 0.01), (1.0, 0.1))]
    recipes = [Recipe(model="small-cnn", epochs=3, batch_size=1, lr=0.1, lr_drops=pairs) for pairs in drops]
    assert len({RunSpec("digits", recipe, LossSpec("ce"), 0).key() for recipe in recipes}) == 1
    assert [recipes[1].lr_at(epoch) for epoch in range(3)] == [0.1, 0.1 * 0.1, 0.1 * 0.01]


@pytest.mark.parametrize("seed", [-1, 1.0, True, "1"])
def test_a_seed_that_is_not_an_integer_of_at_least_0_is_refused(seed) -> None:
    with pytest.raises(ConfigError, match="expected seed to be an integer"):
        RunSpec("digits", Recipe(model="small-cnn", epochs=1, batch_size=1, lr=0.1), LossSpec("ce"), seed)
