"""Docstrings as griffe reads them: examples as code, fields of classes with their types."""

import griffe


class Docstrings(griffe.Extension):
    """Rewrite section titles that griffe knows by another name."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Rewrite the titles in the docstring of one object.

        Args:
            obj: the module, class, function or attribute.
            **kwargs: what else griffe gives.
        """
        if obj.docstring is None:
            return
        text = obj.docstring.value.replace("Example:\n", "Examples:\n")
        if obj.is_class and "__init__" not in obj.members:  # its arguments are its fields
            text = text.replace("Args:\n", "Attributes:\n", 1)
        obj.docstring.value = text
