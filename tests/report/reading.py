"""Read a page as a browser would, strictly: every element is closed, in order."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """A parsed page.

    Attributes:
        text: the visible text, blanks joined.
        attributes: (element, attribute, value) of the whole page.
        best: texts of the elements that have class `best`.
        sections: texts of the `h2` headings.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.attributes: list[tuple[str, str, str]] = []
        self.best: list[str] = []
        self.sections: list[str] = []
        self._open: list[tuple[str, dict[str, str]]] = []
        self._pieces: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"
        self.text = " ".join(" ".join(self._pieces).split())

    def handle_starttag(self, tag, attributes):
        values = {name: value or "" for name, value in attributes}
        assert len(values) == len(attributes), f"an attribute of {tag} is there twice"
        self.attributes += [(tag, name, value) for name, value in values.items()]
        if tag not in VOID:
            self._open.append((tag, values))

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag):
        assert self._open, f"</{tag}> closes nothing"
        opened, _ = self._open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data):
        inside = self._open[-1] if self._open else ("", {})
        if inside[0] in ("style", "script"):
            return
        self._pieces.append(data)
        if "best" in inside[1].get("class", "").split():
            self.best.append(data.strip())
        if inside[0] == "h2":
            self.sections.append(data.strip())

    def ids(self) -> list[str]:
        """Ids of all elements."""
        return [value for _, name, value in self.attributes if name == "id"]

    def outside(self) -> list[str]:
        """Whatever the page would load or link to beyond itself and its folder."""
        loads = {"src", "href", "data", "action", "poster", "srcset", "xlink:href"}
        return [
            value
            for tag, name, value in self.attributes
            if name in loads and not value.startswith(("#", "data:image/png;base64,", "runs/"))
        ]
