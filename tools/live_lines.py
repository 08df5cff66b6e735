"""Lines that change while work goes on: redrawn in place in a terminal, elsewhere once a minute."""

import math
import sys
import time
from shutil import get_terminal_size

SECONDS = 60  # between two times that lines are printed where they cannot be redrawn


class LiveLines:
    """Prints lines over those that it printed last, or where that cannot be, once a minute."""

    def __init__(self):
        self.unsaid, self.above, self.said = [], 0, -math.inf

    def update(self, lines):
        """The lines are these now."""
        self.unsaid = lines
        if sys.stdout.isatty() or time.monotonic() - self.said > SECONDS:
            self.end()

    def end(self):
        """Print the last ones, if they have not been."""
        if not (lines := self.unsaid):
            return
        self.unsaid, self.said = [], time.monotonic()
        height = len(lines)
        if sys.stdout.isatty():
            width, up = get_terminal_size().columns - 1, f"\x1b[{self.above}F" * (self.above > 0)
            lines = [f"{line[:width]}\x1b[K" for line in lines]
            lines[0] = up + lines[0]
            lines[-1] += "\x1b[J" * (height < self.above)  # what stands below is old
        print(*lines, sep="\n", flush=True)
        self.above = height

    def stay(self):
        """Something was printed below: begin anew there."""
        self.above = 0
