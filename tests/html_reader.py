"""Reading what is shown in notebooks: its text, if it is well-formed."""

from __future__ import annotations

import html.parser


class Page(html.parser.HTMLParser):
    """Reads a representation, and fails where it is no well-formed HTML."""

    EMPTY = frozenset({"br", "img", "hr", "input"})

    def __init__(self, source):
        super().__init__()
        self.open = []
        self.text = ""
        self.feed(source)
        self.close()
        assert not self.open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
