"""Sphinx configuration.  Build with ``make docs`` (docs/build.py), which makes the reference pages first."""

from virtd import __version__

project = "virtd"
author = "the virtd developers"
copyright = author  # noqa: A001 -- Sphinx reads this name
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "schema"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_display_short_literal_types = True
highlight_language = "none"
smartquotes = False  # what is shown is to be copied

html_theme = "alabaster"
html_static_path = ["_static"]
html_theme_options = {
    "description": "One guest-management API over KVM, Xen and VirtualBox",
    "fixed_sidebar": True,
    "page_width": "1100px",
    "show_relbars": True,
}
