"""For the site: links to files outside docs/ lead to the repository."""

import posixpath
import re


def on_page_markdown(markdown, page, config, **_):
    """Rewrite the relative links of a page that leave docs/."""
    folder = posixpath.dirname(page.file.src_uri)

    def outside(found):
        path = posixpath.normpath(posixpath.join("docs", folder, found[1]))
        if "://" in found[1] or path.startswith("docs/"):
            return found[0]
        return f"]({config.repo_url}/blob/main/{path}{found[2] or ''})"

    return re.sub(r"\]\(([^)#\s]+)(#[^)\s]*)?\)", outside, markdown)
