"""Numbers that the paper prints, for comparison with measured ones."""

# Table 1 as printed: data set -> eps -> accuracy for each pair (training loss, loss of the attack).
PAPER_COLUMNS = (("CE", "CE"), ("HR(1.6)", "CE"), ("HR(1.6)", "HR"), ("CE", "HR"))
PAPER_TABLE_1 = {
    "mnist": {
        0.0: (0.985, 0.986, 0.986, 0.985),
        0.1: (0.907, 0.945, 0.977, 0.977),
        0.25: (0.852, 0.861, 0.974, 0.972),
    },
    "cifar10": {
        0.0: (0.656, 0.685, 0.685, 0.656),
        0.1: (0.296, 0.337, 0.324, 0.288),
        0.25: (0.282, 0.320, 0.306, 0.271),
    },
    "svhn": {
        0.0: (0.865, 0.901, 0.901, 0.865),
        0.1: (0.797, 0.836, 0.835, 0.801),
        0.25: (0.672, 0.704, 0.698, 0.674),
    },
}
# The printed norms ||I - C||, under the CE attack at this eps.
PAPER_CONFUSION = {"mnist": {"CE": 0.40, "HR(1.6)": 0.23}}
PAPER_CONFUSION_EPS = 0.1
