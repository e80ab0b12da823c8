"""Errors of files."""


class FileFormatError(Exception):
    """A file is damaged, hostile or foreign. The message is one line."""
