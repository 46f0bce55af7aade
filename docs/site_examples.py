"""For the site: griffe knows the section `Examples:`, and our docstrings have one `Example:`."""

import re

import griffe


class Examples(griffe.Extension):
    """Show the example of a docstring as code."""

    def on_object(self, *, obj, **_):
        """Rename the section."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
