"""Tables for people, who open them in spreadsheets."""


def no_formula(text: str) -> str:
    """A text that no spreadsheet takes for a formula: one that could be has an apostrophe before it."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
