"""What people look at: masks painted on pictures (overlay.py), a page for the browser (page.py)."""
