"""Tables, and blocks between marks, of the project's pages in Markdown."""


def markdown_table(header, rows):
    """A Markdown table from a list of column names and a list of rows of cells."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def replace_block(text, name, content):
    """`text` with what stands between the marks `name: begin` and `name: end` replaced.

    Raises ValueError unless each mark is there once.
    """
    begin, end = (f"<!-- {name}: {place} -->" for place in ("begin", "end"))
    for mark in (begin, end):
        if text.count(mark) != 1:
            raise ValueError(f"{mark} stands {text.count(mark)} times in the page; allowed: once")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content.strip()}\n{end}{rest.split(end)[1]}"
