"""Pictures for people: masks drawn on a picture (overlay.py), a web page (page.py)."""
