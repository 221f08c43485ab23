"""What the pages docs/recipes/*.md say beside the code: formulas, misprints, published numbers, checks, mistakes."""

from recipes_source import arl, d2mae, tusa, usfm
from recipes_source.parts import Page

PAGES: dict[str, Page] = {page.name: page for page in (usfm.PAGE, tusa.PAGE, d2mae.PAGE, arl.PAGE)}
