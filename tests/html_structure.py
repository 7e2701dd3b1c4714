"""A page as a parser sees it."""

from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br", "wbr", "img"}


class Structure(HTMLParser):
    """Tags, attributes, text and scripts; complains of tags that do not match."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.scripts = [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open[-1:] == ["script"] else self.text).append(data)

    def values(self, name):
        """Values of an attribute, wherever it stands."""
        return [value for _, attribute, value in self.attributes if attribute == name]
