"""Settings of the documentation, built by `sphinx-build -W -b html docs docs/_build`."""

from importlib.metadata import version as version_of

project, author, copyright = "art_hrloss", "The art_hrloss developers", "The art_hrloss developers"
version = release = version_of("art_hrloss")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "myst_nb",
]
exclude_patterns = ["_build"]
html_theme = "furo"
nb_execution_mode = "off"  # the notebook is stored with its output, and a test executes it
myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": True}
# Offline, links to these are left out and nothing else changes.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "art": ("https://adversarial-robustness-toolbox.readthedocs.io/en/latest", None),
}
