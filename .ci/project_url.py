"""Say where the project lives: its URLs in pyproject.toml, and absolute links in the README.

    python .ci/project_url.py https://github.com/OWNER/asm-runtime

A package index shows the README far from the files that it links to. Run it once when the address is
known, again when it changes.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BRANCH = "main"


def main(url: str, root: Path = ROOT) -> None:
    url = url.rstrip("/")
    readme, project = root / "README.md", root / "pyproject.toml"
    readme.write_text(with_links(readme.read_text("utf-8"), url), "utf-8")
    project.write_text(with_urls(project.read_text("utf-8"), url), "utf-8")


def with_links(text: str, url: str) -> str:
    """The README with links that lead somewhere from anywhere."""
    text = re.sub(rf"\]\(https://[^()\s]+/(?:blob|raw)/{BRANCH}/", "](", text)  # of an earlier address
    text = re.sub(r"(?<=!)(\[[^]]*\])\((?!https:|#)([^)]+)\)", rf"\1({url}/raw/{BRANCH}/\2)", text)
    return re.sub(r"(?<!!)(\[[^]]*\])\((?!https:|#)([^)]+)\)", rf"\1({url}/blob/{BRANCH}/\2)", text)


def with_urls(text: str, url: str) -> str:
    """pyproject.toml with the project's URLs."""
    urls = (
        "[project.urls]\n"
        f'Source = "{url}"\n'
        f'Documentation = "{url}/tree/{BRANCH}/docs"\n'
        f'Changelog = "{url}/blob/{BRANCH}/CHANGELOG.md"\n'
        f'Issues = "{url}/issues"\n\n'
    )
    text = re.sub(r"\[project\.urls\]\n(?:.+\n)*\n", "", text)
    return text.replace("[project.optional-dependencies]\n", f"{urls}[project.optional-dependencies]\n", 1)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].startswith("https://"):
        sys.exit(__doc__)
    main(sys.argv[1])
