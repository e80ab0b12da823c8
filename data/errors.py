"""Errors of files."""


class FileFormatError(Exception):
    """A file is damaged, hostile or foreign. The message is one line.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".h5") as file:
    ...     try:
    ...         sb.load(file.name)
    ...     except sb.FileFormatError:
    ...         print("no run file")
    no run file
    """
